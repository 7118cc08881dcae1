"""What diagnose-cohort shows: a line at the start of each finding and every ten seconds, and the verdicts."""

import sys
import time
from pathlib import Path

from mil.diagnosis.diagnose import Progress
from mil.diagnosis.finding import Diagnosis
from mil.pages import words
from mil.training.display import plain_console

_LINE_EVERY_S = 10.0


class Display:
    """Lines on standard output, with the time left at the pace so far; full messages of failures on standard error."""

    def __init__(self) -> None:
        self._console = plain_console()
        self._began, self._last, self._number = time.monotonic(), 0.0, -1

    def warning(self, text: str) -> None:
        self._print(f"warning: {text}")

    def progress(self, at: Progress) -> None:
        now = time.monotonic()
        if self._number < 0:
            self._began = now
        if at.number == self._number and now - self._last <= _LINE_EVERY_S:
            return
        self._last, self._number = now, at.number
        seconds = now - self._began
        left = ""
        if at.done > 0 and seconds > 1:
            left = f", about {words.seconds(seconds * (1 - at.done) / at.done)} left"
        self._print(f"[{at.number + 1}/{at.findings}] {at.title}: {at.share:.0%} ({at.done:.0%} of all{left})")

    def result(self, diagnosis: Diagnosis, out: Path) -> None:
        for finding in diagnosis.findings:
            sys.stderr.write(finding.traceback)
        for finding in diagnosis.findings:
            self._print(f"{finding.severity.upper():8}{finding.title}: {finding.verdict}")
        self._print(f"diagnosis  {out / 'diagnosis.html'}")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
