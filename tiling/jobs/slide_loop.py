"""One loop over slides for every stage: each slide ends done, skipped, empty, failed with a reason, or locked.

An output folder that cannot be written (disk full) is one failure and stops the run; the slides that had not ended
then are not done. The only broad `except` that decides about a slide stands here: one bad slide never ends a run.
"""

import errno
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tiling.jobs.atomic import no_room
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import IN_THIS_PROCESS, Execution, Executor, Job, executor
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import DEAD_AFTER_S, Locked, begin_run, clear_dead
from tiling.jobs.outcomes import Outcome, Outcomes, write_outcomes

RETRY_S = 20.0  # more than HEARTBEAT_S, so that a live lock has changed after it
_NOT_DONE = "the run stopped before it was done"


def run_slides(
    jobs: Sequence[Job],
    work: Callable[[Job], Outcome],
    out: Path,
    execution: Execution = IN_THIS_PROCESS,
    listener: Listener = SILENT,
    known: Sequence[Outcome] = (),
) -> Outcomes:
    """Do every job and write summary and failures to `out`.

    known: how slides ended that need no work, which come first.
    work: picklable where `execution` has workers or a scheduler. Its RequestError is raised here; all else that it
        raises is a failure of the slide.
    """
    out.mkdir(parents=True, exist_ok=True)
    start, outcomes = time.monotonic(), []
    begin_run()
    execute = executor(functools.partial(_guarded, work, out=out), execution)
    running = _until_stopped(known, _without_dead_locks(jobs, execute, listener))
    try:
        with closing(running), listener.following(len(known) + len(jobs)) as show:
            for outcome in running:
                outcomes.append(outcome)
                if outcome.warning:
                    listener.warn(outcome.warning)
                show(outcome)
    finally:
        clear_dead(out)  # of workers that were killed
    ids = {o.slide_id for o in outcomes}
    outcomes += [Outcome(j.slide_id, "not done", _NOT_DONE) for j in jobs if j.slide_id not in ids]
    ended = _written(outcomes, out, execution, time.monotonic() - start, {j.slide_id: _folders(j) for j in jobs})
    listener.ended(ended)
    return ended


def _folders(job: Job) -> list[Path]:
    """Where the files of a job lie."""
    return [value.parent for value in vars(job).values() if isinstance(value, Path)]


def _written(
    outcomes: Sequence[Outcome],
    out: Path,
    execution: Execution,
    seconds: float,
    folders: Mapping[str, Sequence[Path]],
) -> Outcomes:
    part = f"-{execution.part.replace('/', '-of-')}" if execution.part else ""
    summary, failures = (out / f"{execution.prefix}{name}" for name in (f"summary{part}.json", f"failures{part}.csv"))
    unwritten = ""
    try:
        write_outcomes(outcomes, summary, failures, folders)
    except OSError as error:
        unwritten = error.strerror or str(error)
    except Locked as error:
        unwritten = f"another job writes it ({error})"
    if execution.address:
        return Outcomes(tuple(outcomes), execution.address, f"{execution.address}/{failures.name}", seconds, unwritten)
    return Outcomes(tuple(outcomes), out, failures, seconds, unwritten)


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


def _until_stopped(
    known: Sequence[Outcome], outcomes: Generator[Outcome, None, None]
) -> Generator[Outcome, None, None]:
    with closing(outcomes):
        for outcome in itertools.chain(known, outcomes):
            yield outcome
            if outcome.stops:
                return


def _without_dead_locks(
    jobs: Sequence[Job], execute: Executor[Job], listener: Listener
) -> Generator[Outcome, None, None]:
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
            listener.warn(
                f"{len(unsure)} slides are locked by jobs on other machines; waiting up to "
                f"{deadline - time.monotonic():.0f} s to see whether these are alive ({names})"
            )
            time.sleep(RETRY_S)
        waiting = unsure
