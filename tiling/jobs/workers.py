"""A pool of worker processes that survives the death of a worker and never outlives its parent.

Slide libraries are C code: a damaged file can crash or hang up the process that reads it. Each worker has a
pipe of its own, so it is known which job a dead worker was doing: that job fails with the signal's name, a
fresh worker takes its place, and the others never notice. A worker says with `alive()` that its job goes on;
one that has not said so for long is killed. `cores()` is how many cores a job may use while others rest.

Workers are forked by a server (multiprocessing's forkserver) that has loaded what they need, once. No library's pool
does all of this: those of concurrent.futures and joblib break as a whole when a worker dies; none has heart beats.
"""

import fcntl
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Generic, TypeVar

from tiling.jobs.arrivals import Arrivals

Job = TypeVar("Job")
Result = TypeVar("Result")
STALL_S = 600.0  # without a sign of life, after which a worker is taken for hung up
_GRACE_S = 3.0  # for a worker to end by itself
_FROM_OUTSIDE = (signal.SIGINT, signal.SIGTERM)
_LATE_S = 2.0  # by which a wait may end too late before this process is taken to have been suspended


class Stopped(BaseException):
    """Raised by `alive` in a job on a thread whose run is ending; no `except Exception` may hold it up."""


class WorkerDied(Exception):
    """The process that did a job ended before it gave a result."""


@dataclass(frozen=True)
class _Raised:
    error: Exception


@dataclass(frozen=True)
class _Signs:
    """Memory that a worker shares with its parent, each a number that one side writes and the other reads."""

    cores: Any  # ctypes.c_int, the same of all workers: cores that each may use now
    alive_s: Any  # ctypes.c_double, of this worker: when it last showed life, by time.monotonic


@dataclass(frozen=True)
class _Surroundings:
    """What a worker would have from the server, which may be older, and is to have from its parent."""

    cpus: frozenset[int] = field(default_factory=lambda: frozenset(os.sched_getaffinity(0)))
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def enter(self) -> None:
        os.sched_setaffinity(0, self.cpus)
        os.environ.clear()
        os.environ.update(self.environment)


@dataclass
class _Worker(Generic[Job]):
    process: ForkServerProcess
    pipe: Connection
    signs: _Signs
    job: Job | None = None
    killed_s: float | None = None  # when, by time.monotonic, for being hung up

    def is_lost(self) -> bool:
        """Hung up in the kernel, where even a kill does not reach it; such a process is left to itself."""
        return self.killed_s is not None and time.monotonic() - self.killed_s > _GRACE_S


_signs: _Signs | None = None  # in a worker
_in_task = threading.local()
_starting = threading.Lock()  # of workers, by several threads


def cores() -> int:
    """How many cores the job in this process may use now; asked again, it may have changed. Outside a pool: all."""
    if getattr(_in_task, "one_core", False):
        return 1
    return int(_signs.cores.value) if _signs else len(os.sched_getaffinity(0))


def alive() -> None:
    """Say that the job goes on. Cheap; to be called at each patch, from any thread.

    Raises Stopped in the thread of a job of `map_threads` that is to end.
    """
    if _signs:
        _signs.alive_s.value = time.monotonic()
    stopping: threading.Event | None = getattr(_in_task, "stopping", None)
    if stopping and stopping.is_set():
        raise Stopped


def map_threads(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int) -> Generator[Result, None, None]:
    """Yield results as they are there, from threads of this process. When it is closed, jobs end at `alive`.

    The caller waits on a queue alone and a thread does the rest: locks and pools are written in Python, and the
    KeyboardInterrupt of a signal in their midst leaves a lock held, on which the threads then wait for ever.
    """
    stopping = threading.Event()
    ended: SimpleQueue[Future[Result] | None] = SimpleQueue()

    def run(job: Job) -> Result:
        _in_task.stopping = stopping
        alive()
        return work(job)

    def run_all() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for job in jobs:
                pool.submit(run, job).add_done_callback(ended.put)
        ended.put(None)

    runner = threading.Thread(target=run_all)
    runner.start()
    try:
        while (future := ended.get()) is not None:
            yield future.result()
    finally:
        stopping.set()
        runner.join()


@dataclass(frozen=True)
class OnOneCore(Generic[Job, Result]):
    """`work` with `cores()` at 1 in it, for schedulers that count one core a task, such as Dask."""

    work: Callable[[Job], Result]

    def __call__(self, job: Job) -> Result:
        _in_task.one_core = True
        try:
            return self.work(job)
        finally:
            _in_task.one_core = False


def map_unordered(
    work: Callable[[Job], Result],
    jobs: Iterable[Job] | Arrivals[Job],
    workers: int,
    stall_s: float = STALL_S,
    full: Callable[[], bool] = lambda: False,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Job, Result | WorkerDied], None, None]:
    """Yield (job, result) as they finish; `WorkerDied` in the result's place where a process crashed or hung up.

    jobs: those of Arrivals are begun as they come.
    workers: cores in use, and processes at most; where there are fewer jobs than cores, each may use several.
    stall_s: a job may take this long without a call of `alive`.
    full: whether no further job is to be begun, for now, because of results that wait elsewhere.
    stopped: whether to end without the jobs that are left; asked every few seconds at least.

    What `work` raises is raised here. The pool is ended when the iterator is closed, also in mid-run.
    """
    if not isinstance(jobs, Arrivals):
        there = list(jobs)
        jobs = Arrivals(len(there), there)
    pool = _Pool(work, workers, min(workers, jobs.expected))
    watch = _Watch(stall_s)
    try:
        pool.give(jobs)
        while ((busy := pool.busy()) or jobs.left) and not stopped():
            waiting = jobs.left and len(busy) < pool.size and not full()
            ready = wait([*(w.pipe for w in busy), *([jobs.bell] if waiting else [])], watch.every_s)
            watch.look(busy)
            if jobs.bell in ready:
                pool.give(jobs)
            for worker in [w for w in busy if w.pipe in ready or w.is_lost()]:
                job = worker.job
                assert job is not None
                result = _result(worker, stall_s)
                if isinstance(result, WorkerDied):
                    pool.replace(worker)
                worker.job = None
                if not (full() and pool.busy()):
                    pool.give(jobs)
                yield job, result
    finally:
        pool.end()


class _Pool(Generic[Job, Result]):
    def __init__(self, work: Callable[[Job], Result], cores_in_use: int, processes: int) -> None:
        self._context: ForkServerContext = mp.get_context("forkserver")
        self._work = work
        self._cores_in_use = cores_in_use
        self._cores = self._context.Value("i", 1, lock=False)
        self._workers: list[_Worker[Job]] = [self._start() for _ in range(processes)]

    @property
    def size(self) -> int:
        return len(self._workers)

    def busy(self) -> list[_Worker[Job]]:
        return [w for w in self._workers if w.job is not None]

    def give(self, queue: Arrivals[Job]) -> None:
        """Give a job to each idle worker, as far as there are any, and share the cores among the busy ones."""
        idle = (w for w in self._workers if w.job is None)
        taken = list(zip(idle, iter(queue.take, None), strict=False))
        for worker, job in taken:
            worker.job = job
        self._cores.value = max(1, self._cores_in_use // max(1, len(self.busy())))
        for worker, job in taken:
            worker.signs.alive_s.value = time.monotonic()
            with suppress(OSError):  # it died while it was idle, which reading its answer will tell
                worker.pipe.send(job)

    def replace(self, worker: _Worker[Job]) -> None:
        self._workers[self._workers.index(worker)] = self._start()
        worker.pipe.close()

    def end(self) -> None:
        """All workers are told to end at once; those that do not are killed."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            worker.process.kill()
            worker.process.join(_GRACE_S)
            worker.pipe.close()

    def _start(self) -> _Worker[Job]:
        here, there = self._context.Pipe()
        signs = _Signs(self._cores, self._context.Value("d", time.monotonic(), lock=False))
        arguments = (there, self._work, signs, _Surroundings())
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        module = _module_of(self._work)
        with _starting, _without_main() if module != "__main__" else nullcontext():
            load_ahead(module)
            process.start()
        there.close()
        return _Worker(process, here, signs)


def load_ahead(module: str) -> None:
    """Start the server that workers are forked from, unless it runs, and let it load `module` meanwhile.

    It ends with this process, and is deaf to Ctrl-C and to what a scheduler sends to all processes of a job.
    """
    forkserver.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # first: where the server starts it, it unblocks these signals again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_OUTSIDE)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        forkserver.set_forkserver_preload(["__main__"])  # as it was


def _module_of(work: Any) -> str:
    """Where the innermost function of nested partials comes from."""
    parts = [work, *getattr(work, "args", ())]
    inner = next((part for part in parts[1:] if callable(part)), getattr(work, "func", None))
    return _module_of(inner) if inner is not None else str(work.__module__)


@contextmanager
def _without_main() -> Iterator[None]:
    """Each worker would run the caller's script again to have what it defines; so a script needs no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass
class _Watch:
    """Kills workers that have a job and show no life."""

    stall_s: float
    _looked_s: float = field(default_factory=time.monotonic)

    @property
    def every_s(self) -> float:
        return min(5.0, self.stall_s / 4)

    def look(self, busy: Sequence[_Worker[Any]]) -> None:
        now_s = time.monotonic()
        suspended = now_s - self._looked_s > self.every_s + _LATE_S  # so the workers were, too
        self._looked_s = now_s
        for worker in busy:
            if suspended:
                worker.signs.alive_s.value = now_s
            elif now_s - worker.signs.alive_s.value > self.stall_s and not worker.killed_s and not worker.pipe.poll():
                worker.killed_s = now_s
                worker.process.kill()


def _result(worker: _Worker[Job], stall_s: float) -> Any:
    try:
        result = worker.pipe.recv() if worker.pipe.poll() else WorkerDied(_cause_of_death(worker, stall_s))
    except (EOFError, OSError):
        return WorkerDied(_cause_of_death(worker, stall_s))
    if isinstance(result, _Raised):
        raise result.error
    return result


def _cause_of_death(worker: _Worker[Any], stall_s: float) -> str:
    if worker.killed_s:
        return (
            f"nothing happened for {stall_s:g} s in the process reading it, which was ended "
            "(is the file damaged, or its disk gone?)"
        )
    worker.process.join(_GRACE_S)
    code = worker.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process reading it died with {name} (is the file damaged, or memory full?)"
    return f"the process reading it ended with exit code {code}"


def _serve(pipe: Connection, work: Callable[[Any], Any], signs: _Signs, surroundings: _Surroundings) -> None:
    global _signs
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_OUTSIDE)
    surroundings.enter()
    _signs = signs
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            result = work(job)
        except Exception as error:
            result = _Raised(error)
        pipe.send(result)


def _end(*_: object) -> None:
    """Free locks and remove what is half written, undisturbed by a second signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, even by SIGKILL, so that no lock stays held.

    Not by PR_SET_PDEATHSIG, which is about the process that forked: here the server, which outlives its clients'
    parent as long as one of them runs. Instead the pipe that breaks when the parent ends sends the signal.
    """
    parent = mp.parent_process()
    assert parent is not None
    pipe = int(parent.sentinel)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():  # it ended before that
        os._exit(1)
