"""Where slides are done: in this process, in processes of their own, or by the workers of a Dask scheduler."""

import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from importlib import import_module
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

    A job whose worker dies is done again by another one; where that goes on, again when all others have ended, with no
    other job beside it, and then it is lost. gpu: by workers alone that offer the Dask resource GPU, each job taking
    one. RequestError where `work` raises it, no scheduler answers, or none of its workers has a GPU.
    """
    dask = _distributed()
    try:
        client = dask.Client(scheduler)
    except (OSError, ValueError) as error:
        raise RequestError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
    with client:
        if gpu and client.run_on_scheduler(_has_no_gpu):
            raise RequestError(
                f"--scheduler {scheduler}: none of its workers offers the resource GPU, which --device cuda needs; "
                'start those with a GPU by `dask worker --resources "GPU=1"`'
            )
        resources = {"GPU": 1} if gpu else None

        def done(some: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
            futures = {client.submit(_OnWorker(work), job, pure=False, resources=resources): job for job in some}
            for future in dask.as_completed(futures):
                yield futures.pop(future), future  # kept, it would be done again if its worker died later

        deadly = []
        for job, future in done(jobs):
            if isinstance(future.exception(), dask.KilledWorker):
                deadly.append(job)
            else:
                yield job, _result_of(future, scheduler)
        for job, future in itertools.chain.from_iterable(done([job]) for job in deadly):
            yield job, _result_of(future, scheduler)


def _distributed() -> Any:
    try:
        return import_module("distributed")  # an extra
    except ImportError:
        raise RequestError("--scheduler needs the extra `cluster`: pip install 'slidemil[cluster]'") from None


def _result_of(future: Any, scheduler: str) -> Any:
    dask, fault = _distributed(), future.exception()
    if isinstance(fault, RequestError):
        raise fault
    if isinstance(fault, dask.KilledWorker):
        return Lost(
            "the Dask workers that did it died one after the other, also with nothing beside it (is a file damaged, or "
            "does it need more than the --memory-limit of a worker?)"
        )
    if fault is not None and not future.cancelled():
        return Lost(f"{type(fault).__name__}: {fault}")
    try:
        return future.result()
    except (OSError, dask.CancelledError):  # perhaps done, and out of reach
        return Lost(f"the Dask scheduler {scheduler} was lost; run again", stops=True)


@dataclass(frozen=True)
class _OnWorker(Generic[Task, Result]):
    """`work` on one core of a Dask worker.

    A worker of one thread that does this is never paused: memory that a library keeps between jobs would pause it for
    ever, and beyond its limit it is restarted.
    """

    work: Callable[[Task], Result]

    def __call__(self, job: Task) -> Result:
        worker = _distributed().get_worker()
        if worker.state.nthreads == 1:
            worker.memory_manager.memory_pause_fraction = False
        return OnOneCore(self.work)(job)


def _has_no_gpu(dask_scheduler: Any) -> bool:
    """Whether there are workers, and none has one; told on the scheduler."""
    workers = dask_scheduler.workers.values()
    return bool(workers) and not any(worker.resources.get("GPU") for worker in workers)
