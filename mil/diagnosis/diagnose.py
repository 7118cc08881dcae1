"""Make all findings, one after the other, and write `diagnosis.html` and `diagnosis.json`.

A finding that lacks its input says what to give. One that fails on odd data says why and does not end the others.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mil.cohort.cohort import load_cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.diagnosis.catalogue import FINDINGS, Entry
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import SEVERITIES, Finding, MissingInput
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.page import write_diagnosis
from mil.run.layout import require_complete
from mil.tasks.task import Target
from mil.training.display import plain_console, seconds_in_words
from tiling.jobs.errors import RequestError

_LINE_EVERY_S = 10.0


def diagnose_cohort(
    features: Path,
    table: Path,
    target: str,
    out: Path,
    config: DiagnoseConfig,
    *,
    patches: Path | None = None,
    run: Path | None = None,
    random_features: Path | None = None,
    scales: Sequence[Path] = (),
) -> int:
    """Write the diagnosis into `out`; return the exit code, 1 where a finding failed. Raises RequestError."""
    given = [("--patches", patches), ("--features-random", random_features), *(("--scales", s) for s in scales)]
    for flag, folder in given:
        if folder is not None and not folder.is_dir():
            raise RequestError(f"{flag} {folder}: no such folder")
    if run is not None:
        require_complete(run)
    console = plain_console()
    cohort = load_cohort(features, table, Target(target, config.positive))
    for warning in cohort.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    folds = make_folds(cohort, SplitPlan(folds=config.folds, seed=config.seed))
    show = _Progress(FINDINGS, console)
    inputs = Inputs(
        features,
        table,
        target,
        cohort,
        tuple(folds),
        config,
        patches,
        run,
        random_features,
        tuple(scales),
        progress=show.advance,
    )
    findings = worst_first(make_findings(inputs, FINDINGS, show.start))
    write_diagnosis(out, inputs, findings)
    for finding in findings:
        console.print(f"{finding.severity.upper():8}{finding.title}: {finding.verdict}", soft_wrap=True)
    console.print(f"diagnosis  {out / 'diagnosis.html'}", soft_wrap=True)
    return int(any(finding.error for finding in findings))


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def make_findings(inputs: Inputs, entries: Sequence[Entry], start: Callable[[int], None]) -> list[Finding]:
    """One finding an entry, in their order; `start` is told the position of each before it is made."""
    found = []
    for number, entry in enumerate(entries):
        start(number)
        found.append(_find(entry, inputs))
    return found


def _find(entry: Entry, inputs: Inputs) -> Finding:
    try:
        return entry.find(inputs)
    except MissingInput as missing:
        return Finding(entry.key, entry.title, "missing", "Not looked at: its input is missing.", str(missing))
    except Exception as error:  # whatever odd data does to one finding, the others are wanted
        traceback.print_exc(file=sys.stderr)
        reason = f"{type(error).__name__}: {error}"
        return Finding(
            entry.key,
            entry.title,
            "missing",
            f"Could not be made of these data ({reason.splitlines()[0]}).",
            "The other findings stand. The full message is on the standard error of the command.",
            error=reason,
        )


class _Progress:
    """A line at the start of each finding and every ten seconds, with the time left at the pace so far."""

    def __init__(self, entries: Sequence[Entry], console: Console) -> None:
        self._entries, self._console = entries, console
        self._number, self._began, self._last = 0, time.monotonic(), 0.0

    def start(self, number: int) -> None:
        self._number = number
        self._say(0.0)

    def advance(self, share: float) -> None:
        if time.monotonic() - self._last > _LINE_EVERY_S:
            self._say(share)

    def _say(self, share: float) -> None:
        self._last = time.monotonic()
        shares = [entry.share for entry in self._entries]
        done = (sum(shares[: self._number]) + share * shares[self._number]) / sum(shares)
        seconds = self._last - self._began
        left = f", about {seconds_in_words(seconds * (1 - done) / done)} left" if done > 0 and seconds > 1 else ""
        self._console.print(
            f"[{self._number + 1}/{len(shares)}] {self._entries[self._number].title}: {share:.0%}"
            f" ({done:.0%} of all{left})",
            soft_wrap=True,
        )
