"""Where slides are done: in this process, in processes of their own, or by the workers of a Dask scheduler."""

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from tiling.jobs.arrivals import Arrivals
from tiling.jobs.errors import RequestError
from tiling.jobs.outcomes import Outcome
from tiling.jobs.workers import OnOneCore, WorkerDied, map_threads, map_unordered


class HasSlideId(Protocol):
    @property
    def slide_id(self) -> str: ...


Job = TypeVar("Job", bound=HasSlideId)
Task = TypeVar("Task")
Result = TypeVar("Result")
Executor: TypeAlias = Callable[[Sequence[Job]], Generator[Outcome, None, None]]


@dataclass(frozen=True)
class Lost:
    """In the place of a result that a cluster did not give."""

    reason: str
    stops: bool = False  # nothing else will be done either


@dataclass(frozen=True)
class Arrival(Generic[Job]):
    """A job that is ready, or the fault for which it never will be."""

    job: Job
    fault: str = ""

    @property
    def slide_id(self) -> str:
        return self.job.slide_id


class Ahead(Protocol):
    """Makes jobs ready, in threads of this process, while worker processes do those that are."""

    def coming(self, jobs: Sequence[Any]) -> AbstractContextManager[Arrivals[Arrival[Any]]]:
        """Each of the jobs arrives once; what was made for them is removed when the context ends."""

    def ended(self, slide_id: str) -> None:
        """What was made for this job is needed no more."""


@dataclass(frozen=True)
class Execution:
    """Where slides are done, and which of them this job has."""

    workers: int = 0  # cores in use, each slide in a process of its own; 0: in this process
    threads: int = 1  # slides at once in this process
    scheduler: str = ""  # address of a Dask scheduler, whose workers do them instead
    gpu: bool = False  # of a scheduler's workers, those alone that have one
    part: str = ""  # i/n of an array job, for the names of summary and failures
    prefix: str = ""  # of these names
    address: str = ""  # of the output, where it is brought elsewhere from the folder that it is made in
    ahead: Ahead | None = None  # makes jobs ready, for workers of this machine


IN_THIS_PROCESS = Execution()


def executor(work: Callable[[Job], Outcome], execution: Execution) -> Executor[Job]:
    """Does jobs in the order given and yields their outcomes as they end; closed, it stops."""
    if execution.scheduler:
        return functools.partial(_over_dask, work=work, scheduler=execution.scheduler, gpu=execution.gpu)
    if execution.workers == 0:
        return functools.partial(_over_threads, work=work, threads=execution.threads)
    if execution.ahead:
        return functools.partial(_over_arrivals, work=work, workers=execution.workers, ahead=execution.ahead)
    return functools.partial(_over_processes, work=work, workers=execution.workers)


def _over_processes(
    jobs: Sequence[Job] | Arrivals[Job], work: Callable[[Job], Outcome], workers: int
) -> Generator[Outcome, None, None]:
    with closing(map_unordered(work, jobs, workers)) as results:
        for job, result in results:
            if isinstance(result, WorkerDied):
                yield Outcome(job.slide_id, "failed", str(result))
            else:
                yield result


def _over_arrivals(
    jobs: Sequence[Job], work: Callable[[Job], Outcome], workers: int, ahead: Ahead
) -> Generator[Outcome, None, None]:
    with (
        ahead.coming(jobs) as arrivals,
        closing(_over_processes(arrivals, functools.partial(_of_arrival, work), workers)) as outcomes,
    ):
        for outcome in outcomes:
            ahead.ended(outcome.slide_id)
            yield outcome


def _of_arrival(work: Callable[[Job], Outcome], arrival: Arrival[Job]) -> Outcome:
    return Outcome(arrival.slide_id, "failed", arrival.fault) if arrival.fault else work(arrival.job)


def _over_threads(jobs: Sequence[Job], work: Callable[[Job], Outcome], threads: int) -> Generator[Outcome, None, None]:
    if threads == 1:
        yield from (work(job) for job in jobs)
    else:
        with closing(map_threads(work, jobs, threads)) as outcomes:
            yield from outcomes


def _over_dask(
    jobs: Sequence[Job], work: Callable[[Job], Outcome], scheduler: str, gpu: bool
) -> Generator[Outcome, None, None]:
    with closing(map_cluster(work, jobs, scheduler, gpu)) as results:
        for job, result in results:
            if isinstance(result, Lost):
                yield Outcome(job.slide_id, "failed", result.reason, stops=result.stops)
            else:
                yield result


def map_cluster(
    work: Callable[[Task], Result], jobs: Sequence[Task], scheduler: str, gpu: bool = False
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Yield (job, result) as they end on the workers of a Dask scheduler, begun in the order given; or what was lost.

    A job whose worker dies is done again by another one. gpu: by workers alone that offer the Dask resource GPU, each
    job taking one. RequestError where `work` raises it, no scheduler answers, or none of its workers has a GPU.
    """
    try:
        from distributed import CancelledError, Client, as_completed
    except ImportError:
        raise RequestError("--scheduler needs the extra `cluster`: pip install 'slidemil[cluster]'") from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise RequestError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
    with client:
        if gpu and client.run_on_scheduler(_has_no_gpu):
            raise RequestError(
                f"--scheduler {scheduler}: none of its workers offers the resource GPU, which --device cuda needs; "
                'start those with a GPU by `dask worker --resources "GPU=1"`'
            )
        resources = {"GPU": 1} if gpu else None
        futures = {client.submit(OnOneCore(work), job, pure=False, resources=resources): job for job in jobs}
        lost = Lost(f"the Dask scheduler {scheduler} was lost; run again", stops=True)
        for future in as_completed(futures):
            job = futures.pop(future)  # kept, it would be done again if its worker died later
            fault = future.exception()
            if isinstance(fault, RequestError):
                raise fault
            if fault is not None and not future.cancelled():
                yield job, Lost(_why_lost(fault))
                continue
            try:
                result = future.result()
            except (OSError, CancelledError):  # perhaps done, and out of reach
                yield job, lost
            else:
                yield job, result


def _has_no_gpu(dask_scheduler: Any) -> bool:
    """Whether there are workers, and none has one; told on the scheduler."""
    workers = dask_scheduler.workers.values()
    return bool(workers) and not any(worker.resources.get("GPU") for worker in workers)


def _why_lost(fault: BaseException) -> str:
    if type(fault).__name__ == "KilledWorker":
        return "the Dask workers that did it died one after the other (is a file damaged, or memory full?)"
    return f"{type(fault).__name__}: {fault}"
