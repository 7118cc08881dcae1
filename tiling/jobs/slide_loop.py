"""One loop over slides for every stage: each slide ends done, skipped, empty, failed with a reason, or locked.

Locked means that another job is doing it at this moment. An output folder that cannot be written (disk full) is
one failure and stops the run; the slides that had not ended then are not done.

The only broad `except` that decides about a slide stands here: one bad slide never ends a run. `summary.json`
counts the outcomes; `failures.csv` names each failed slide and why, and is absent when nothing failed. An array job
with `--part i/n` writes `summary-i-of-n.json` and `failures-i-of-n.csv`, so parts do not overwrite another's.
"""

import csv
import errno
import functools
import io
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiling.jobs.atomic import no_room, write_json, write_text
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import DEAD_AFTER_S, Locked, clear_dead
from tiling.jobs.workers import OnOneCore, WorkerDied, map_threads, map_unordered

Status = Literal["done", "skipped", "empty", "locked", "failed", "not done"]
RETRY_S = 20.0  # more than HEARTBEAT_S, so that a live lock has changed after it
_NOT_DONE = "the run stopped before it was done"


@dataclass(frozen=True)
class Outcome:
    """How one slide ended. `patches` counts what its output holds."""

    slide_id: str
    status: Status
    reason: str = ""
    patches: int = 0
    stops: bool = False  # no other slide can be done either
    beat: str = ""  # of a lock whose owner cannot be seen, see tiling.jobs.locks.Locked


class HasSlideId(Protocol):
    @property
    def slide_id(self) -> str: ...


Job = TypeVar("Job", bound=HasSlideId)
Executor: TypeAlias = Callable[[Sequence[Job]], Generator[Outcome, None, None]]


def run_batch(
    jobs: Sequence[Job],
    work: Callable[[Job], Outcome],
    *,
    out: Path,
    verb: str,
    workers: int = 0,
    threads: int = 1,
    scheduler: str = "",
    part: str = "",
    prefix: str = "",
) -> int:
    """Do every job, show progress, write the summary; return the exit code.

    The code is 0; 1 if some slide failed or was not done; 2 if there is no room even for the summary.
    workers: 0 runs in this process, `threads` slides at once; otherwise this many cores are in use, each slide in a
        process of its own, in the order given, and `work` must be picklable.
    scheduler: address of a Dask scheduler whose workers do the jobs instead.
    prefix: of the names of summary and failures.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    start = time.monotonic()
    guarded = functools.partial(_guarded, work, out=out)
    running = _until_stopped(_without_dead_locks(jobs, _executor(guarded, workers, threads, scheduler), verb))
    try:
        with closing(running):
            if console.is_terminal:
                outcomes = _with_bar(running, len(jobs), verb, console)
            else:
                outcomes = _with_lines(running, len(jobs), verb)
    finally:
        clear_dead(out)  # of workers that were killed
    ended = {o.slide_id for o in outcomes}
    outcomes += [Outcome(j.slide_id, "not done", _NOT_DONE) for j in jobs if j.slide_id not in ended]
    return _report(outcomes, verb, out, f"{prefix}{{}}{_part_suffix(part)}", time.monotonic() - start)


def _guarded(work: Callable[[Job], Outcome], job: Job, out: Path) -> Outcome:
    try:
        return work(job)
    except Locked as error:
        return Outcome(job.slide_id, "locked", f"another job is doing it ({error})", beat=error.beat)
    except RequestError:
        raise
    except Exception as error:  # any fault of one slide must leave the others alone
        full = no_room(error)
        if full is not None:
            return Outcome(job.slide_id, "failed", _why_stopped(full, out), stops=True)
        reason = str(error) if isinstance(error, SlideError) else f"{type(error).__name__}: {error}"
        return Outcome(job.slide_id, "failed", reason)


def _why_stopped(error: OSError, out: Path) -> str:
    why, remedy = {
        errno.EROFS: ("it is on a read-only disk", "choose another --out"),
        errno.EFBIG: (
            "a file is larger than the disk or `ulimit -f` allows",
            "raise the limit or choose another --out",
        ),
        errno.EDQUOT: ("the disk quota is used up", "make room or choose another --out"),
    }.get(error.errno or 0, ("its disk is full", "make room or choose another --out"))
    return f"{out} cannot be written: {why} ({error.strerror}); {remedy}, then run the same command again"


def _until_stopped(outcomes: Generator[Outcome, None, None]) -> Generator[Outcome, None, None]:
    with closing(outcomes):
        for outcome in outcomes:
            yield outcome
            if outcome.stops:
                return


def _without_dead_locks(jobs: Sequence[Job], execute: Executor[Job], verb: str) -> Generator[Outcome, None, None]:
    """The outcomes of all jobs; where a lock may be that of a killed job on another machine, waits until it is known.

    A live owner's heartbeat shows within `RETRY_S`; a dead owner's lock can be taken over after DEAD_AFTER_S.
    """
    beats: dict[str, str] = {}
    waiting: Sequence[Job] = jobs
    deadline = math.inf
    while waiting:
        by_id, unsure = {job.slide_id: job for job in waiting}, []
        with closing(execute(waiting)) as outcomes:
            for outcome in outcomes:
                seen, beats[outcome.slide_id] = beats.get(outcome.slide_id), outcome.beat
                if outcome.beat and seen in (None, outcome.beat) and time.monotonic() < deadline:
                    unsure.append(by_id[outcome.slide_id])
                else:
                    yield outcome
        if unsure:
            deadline = min(deadline, time.monotonic() + DEAD_AFTER_S + 2 * RETRY_S)
            names = ", ".join(job.slide_id for job in unsure[:5]) + (", …" if len(unsure) > 5 else "")
            print(
                f"{verb}: {len(unsure)} slides are locked by jobs on other machines; waiting up to "
                f"{deadline - time.monotonic():.0f} s to see whether these are alive ({names})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(RETRY_S)
        waiting = unsure


def _executor(work: Callable[[Job], Outcome], workers: int, threads: int, scheduler: str) -> Executor[Job]:
    if scheduler:
        return functools.partial(_over_dask, work=work, scheduler=scheduler)
    if workers == 0:
        return functools.partial(_over_threads, work=work, threads=threads)
    return functools.partial(_over_processes, work=work, workers=workers)


def _over_processes(
    jobs: Sequence[Job], work: Callable[[Job], Outcome], workers: int
) -> Generator[Outcome, None, None]:
    for job, result in map_unordered(work, jobs, workers):
        if isinstance(result, WorkerDied):
            yield Outcome(job.slide_id, "failed", str(result))
        else:
            yield result


def _over_threads(jobs: Sequence[Job], work: Callable[[Job], Outcome], threads: int) -> Generator[Outcome, None, None]:
    if threads == 1:
        yield from (work(job) for job in jobs)
    else:
        with closing(map_threads(work, jobs, threads)) as outcomes:
            yield from outcomes


def _over_dask(jobs: Sequence[Job], work: Callable[[Job], Outcome], scheduler: str) -> Generator[Outcome, None, None]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise RequestError("--scheduler needs the extra `cluster`: pip install 'slidemil[cluster]'") from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise RequestError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
    with client:
        futures = {client.submit(OnOneCore(work), job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            slide_id = futures.pop(future).slide_id  # kept, it would be done again if its worker died later
            fault = future.exception()
            if isinstance(fault, RequestError):
                raise fault
            if future.cancelled():
                yield Outcome(slide_id, "failed", f"the Dask scheduler {scheduler} was lost; run again", stops=True)
            else:
                yield future.result() if fault is None else Outcome(slide_id, "failed", _why_lost(fault))


def _why_lost(fault: BaseException) -> str:
    if type(fault).__name__ == "KilledWorker":
        return "the Dask workers that read it died one after the other (is the file damaged, or memory full?)"
    return f"{type(fault).__name__}: {fault}"


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


def _part_suffix(part: str) -> str:
    return f"-{part.replace('/', '-of-')}" if part else ""


def _write_summary(outcomes: Sequence[Outcome], out: Path, name: str) -> None:
    """name: pattern of the file names, with {} for `summary` and `failures`."""
    outcomes = sorted(outcomes, key=lambda o: o.slide_id)
    counts = Counter(o.status for o in outcomes)
    slides = {o.slide_id: {"status": o.status, "reason": o.reason, "patches": o.patches} for o in outcomes}
    write_json(out / f"{name.format('summary')}.json", {"counts": dict(counts), "slides": slides})
    failures = out / f"{name.format('failures')}.csv"
    failed = [(o.slide_id, o.reason) for o in outcomes if o.status == "failed"]
    if failed:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("slide_id", "reason"), *failed])
        write_text(failures, text.getvalue())
    else:
        failures.unlink(missing_ok=True)


def _report(outcomes: Sequence[Outcome], verb: str, out: Path, name: str, seconds: float) -> int:
    counts = Counter(o.status for o in outcomes)
    shown = ", ".join(f"{counts[s]} {s}" for s in get_args(Status) if counts[s])
    patches = sum(o.patches for o in outcomes if o.status == "done")
    rate = f", {patches:,} patches in {seconds:.0f} s ({patches / seconds:.0f}/s)" if patches else ""
    print(f"{verb}: {shown or 'nothing to do'}{rate} → {out}")
    for outcome in outcomes:
        if outcome.stops:
            print(f"{verb}: stopped: {outcome.reason}", file=sys.stderr)
    try:
        _write_summary(outcomes, out, name)
    except OSError as error:
        print(f"{verb}: the summary cannot be written to {out} ({error.strerror or error})", file=sys.stderr)
        return 2
    if counts["locked"]:
        print(f"{verb}: {counts['locked']} slides are being done by another job; run again to be sure", file=sys.stderr)
    if counts["failed"]:
        print(f"{verb}: why slides failed is in {out / name.format('failures')}.csv", file=sys.stderr)
    return 1 if counts["failed"] or counts["not done"] else 0
