"""One loop over slides for every stage: each slide ends done, skipped, empty, failed with a reason, or locked.

Locked means that another job is doing it at this moment.

The only broad `except` of the project stands here: one bad slide never ends a run. `summary.json` counts the
outcomes; `failures.csv` names each failed slide and why, and is absent when nothing failed. An array job
with `--part i/n` writes `summary-i-of-n.json` and `failures-i-of-n.csv`, so parts do not overwrite another's.
"""

import csv
import functools
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiling.artifact import Locked, write_json, write_text
from tiling.errors import RequestError, SlideError
from tiling.workers import WorkerDied, map_unordered

Status = Literal["done", "skipped", "empty", "locked", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How one slide ended. `patches` counts what its output holds."""

    slide_id: str
    status: Status
    reason: str = ""
    patches: int = 0


class HasSlideId(Protocol):
    @property
    def slide_id(self) -> str: ...


Job = TypeVar("Job", bound=HasSlideId)


def run_batch(
    jobs: Sequence[Job],
    work: Callable[[Job], Outcome],
    *,
    out: Path,
    verb: str,
    workers: int = 0,
    scheduler: str = "",
    part: str = "",
) -> int:
    """Do every job, show progress, write the summary; return the exit code (0, or 1 if some slide failed).

    workers: 0 runs in this process; otherwise that many processes, and `work` must be picklable.
    scheduler: address of a Dask scheduler whose workers do the jobs instead.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with closing(_outcomes(jobs, functools.partial(_guarded, work), workers, scheduler)) as running:
        if console.is_terminal:
            outcomes = _with_bar(running, len(jobs), verb, console)
        else:
            outcomes = _with_lines(running, len(jobs), verb)
    _write_summary(outcomes, out, part)
    return _report(outcomes, verb, out, part, time.monotonic() - start)


def _guarded(work: Callable[[Job], Outcome], job: Job) -> Outcome:
    try:
        return work(job)
    except Locked as error:
        return Outcome(job.slide_id, "locked", f"another job is doing it ({error})")
    except SlideError as error:
        return Outcome(job.slide_id, "failed", str(error))
    except RequestError:
        raise
    except Exception as error:  # any fault of one slide must leave the others alone
        return Outcome(job.slide_id, "failed", f"{type(error).__name__}: {error}")


def _outcomes(
    jobs: Sequence[Job], work: Callable[[Job], Outcome], workers: int, scheduler: str
) -> Generator[Outcome, None, None]:
    if scheduler:
        yield from _over_dask(jobs, work, scheduler)
    elif workers == 0:
        yield from map(work, jobs)
    else:
        for job, result in map_unordered(work, jobs, workers):
            if isinstance(result, WorkerDied):
                yield Outcome(job.slide_id, "failed", str(result))
            else:
                yield result


def _over_dask(jobs: Sequence[Job], work: Callable[[Job], Outcome], scheduler: str) -> Iterator[Outcome]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise RequestError("--scheduler needs the extra `cluster`: pip install 'slidemil[cluster]'") from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise RequestError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
    with client:
        futures = {client.submit(work, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            fault = future.exception()
            yield (future.result() if fault is None else Outcome(futures[future].slide_id, "failed", str(fault)))


def _with_bar(running: Iterator[Outcome], total: int, verb: str, console: Console) -> list[Outcome]:
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(verb, total=total)
        for outcome in running:
            outcomes.append(outcome)
            progress.advance(task)
            if outcome.status == "failed":
                progress.console.print(f"[red]failed[/red] {outcome.slide_id}: ", end="")
                progress.console.print(outcome.reason, markup=False, highlight=False)
    return outcomes


def _with_lines(running: Iterator[Outcome], total: int, verb: str) -> list[Outcome]:
    outcomes = []
    for outcome in running:
        outcomes.append(outcome)
        said = f"{outcome.patches} patches" if outcome.status == "done" and outcome.patches else outcome.reason
        line = f"{verb} [{len(outcomes)}/{total}] {outcome.slide_id}: {outcome.status}"
        print(f"{line}{', ' + said if said else ''}", file=sys.stderr, flush=True)
    return outcomes


def _named(name: str, part: str, suffix: str) -> str:
    return f"{name}-{part.replace('/', '-of-')}{suffix}" if part else f"{name}{suffix}"


def _write_summary(outcomes: Sequence[Outcome], out: Path, part: str) -> None:
    counts = Counter(o.status for o in outcomes)
    slides = {
        o.slide_id: {"status": o.status, "reason": o.reason, "patches": o.patches}
        for o in sorted(outcomes, key=lambda o: o.slide_id)
    }
    write_json(out / _named("summary", part, ".json"), {"counts": dict(counts), "slides": slides})
    failures = out / _named("failures", part, ".csv")
    failed = [(o.slide_id, o.reason) for o in sorted(outcomes, key=lambda o: o.slide_id) if o.status == "failed"]
    if failed:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("slide_id", "reason"), *failed])
        write_text(failures, text.getvalue())
    else:
        failures.unlink(missing_ok=True)


def _report(outcomes: Sequence[Outcome], verb: str, out: Path, part: str, seconds: float) -> int:
    counts = Counter(o.status for o in outcomes)
    shown = ", ".join(f"{counts[s]} {s}" for s in ("done", "skipped", "empty", "locked", "failed") if counts[s])
    patches = sum(o.patches for o in outcomes if o.status == "done")
    rate = f", {patches:,} patches in {seconds:.0f} s ({patches / seconds:.0f}/s)" if patches else ""
    print(f"{verb}: {shown or 'nothing to do'}{rate} → {out}")
    if counts["locked"]:
        print(f"{verb}: {counts['locked']} slides are being done by another job; run again to be sure", file=sys.stderr)
    if counts["failed"]:
        print(f"{verb}: why slides failed is in {out / _named('failures', part, '.csv')}", file=sys.stderr)
    return 1 if counts["failed"] else 0
