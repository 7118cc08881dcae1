"""Where slides are done: in this process, in processes of their own, or by the workers of a Dask scheduler."""

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from tiling.jobs.errors import RequestError
from tiling.jobs.outcomes import Outcome
from tiling.jobs.workers import OnOneCore, WorkerDied, map_threads, map_unordered


class HasSlideId(Protocol):
    @property
    def slide_id(self) -> str: ...


Job = TypeVar("Job", bound=HasSlideId)
Executor: TypeAlias = Callable[[Sequence[Job]], Generator[Outcome, None, None]]


@dataclass(frozen=True)
class Execution:
    """Where slides are done, and which of them this job has."""

    workers: int = 0  # cores in use, each slide in a process of its own; 0: in this process
    threads: int = 1  # slides at once in this process
    scheduler: str = ""  # address of a Dask scheduler, whose workers do them instead
    part: str = ""  # i/n of an array job, for the names of summary and failures
    prefix: str = ""  # of these names


IN_THIS_PROCESS = Execution()


def executor(work: Callable[[Job], Outcome], execution: Execution) -> Executor[Job]:
    """Does jobs in the order given and yields their outcomes as they end; closed, it stops."""
    if execution.scheduler:
        return functools.partial(_over_dask, work=work, scheduler=execution.scheduler)
    if execution.workers == 0:
        return functools.partial(_over_threads, work=work, threads=execution.threads)
    return functools.partial(_over_processes, work=work, workers=execution.workers)


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
