"""What a command shows of a run over slides: a bar on a terminal, lines elsewhere, a report, the exit code."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tiling.jobs.listener import Listener
from tiling.jobs.outcomes import Outcome, Outcomes


def exit_code(outcomes: Outcomes) -> int:
    """0; 1 if some slide failed or was not done; 2 if there is no room even for the summary."""
    if outcomes.unwritten:
        return 2
    return 1 if outcomes.failed or "not done" in outcomes.counts else 0


class Terminal(Listener):
    def __init__(self, verb: str) -> None:
        self._verb = verb

    @contextmanager
    def following(self, total: int) -> Iterator[Callable[[Outcome], None]]:
        shown = _bar if sys.stderr.isatty() or os.environ.get("FORCE_COLOR") else _lines
        with shown(self._verb, total) as show:
            yield show

    def ended(self, outcomes: Outcomes) -> None:
        _report(outcomes, self._verb)

    def say(self, text: str) -> None:
        print(f"{self._verb}: {text}", flush=True)

    def warn(self, text: str) -> None:
        print(f"{self._verb}: {text}", file=sys.stderr, flush=True)

    def stage(self, name: str) -> Listener:
        return Terminal(name)


@contextmanager
def _bar(verb: str, total: int) -> Iterator[Callable[[Outcome], None]]:
    from rich.console import Console  # here, since lines need none of it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(verb, total=total)

        def show(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.status == "failed":
                console.print(Text.assemble(("failed", "red"), f" {outcome.slide_id}: {outcome.reason}"))

        yield show


@contextmanager
def _lines(verb: str, total: int) -> Iterator[Callable[[Outcome], None]]:
    numbers = itertools.count(1)

    def show(outcome: Outcome) -> None:
        said = f"{outcome.patches} patches" if outcome.status == "done" and outcome.patches else outcome.reason
        line = f"{verb} [{next(numbers)}/{total}] {outcome.slide_id}: {outcome.status}"
        print(f"{line}{', ' + said if said else ''}", file=sys.stderr, flush=True)

    yield show


def _report(outcomes: Outcomes, verb: str) -> None:
    shown = ", ".join(f"{count} {status}" for status, count in outcomes.counts.items())
    patches, seconds = outcomes.patches, outcomes.seconds
    rate = f", {patches:,} patches in {seconds:.0f} s ({patches / seconds:.0f}/s)" if patches else ""
    print(f"{verb}: {shown or 'nothing to do'}{rate} → {outcomes.out}")
    if outcomes.stopped:
        print(f"{verb}: stopped: {outcomes.stopped}", file=sys.stderr)
    if outcomes.unwritten:
        print(f"{verb}: the summary cannot be written to {outcomes.out} ({outcomes.unwritten})", file=sys.stderr)
        return
    if locked := outcomes.counts.get("locked"):
        print(f"{verb}: {locked} slides are being done by another job; run again to be sure", file=sys.stderr)
    if outcomes.failed:
        print(f"{verb}: why slides failed is in {outcomes.failures}", file=sys.stderr)
