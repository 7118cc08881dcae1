"""A pool of worker processes that survives the death of a worker and never outlives its parent.

Slide libraries are C code: a damaged file can crash or hang up the process that reads it. Each worker has a
pipe of its own, so it is known which job a dead worker was doing: that job fails with the signal's name, a
fresh worker takes its place, and the others never notice.
"""

import ctypes
import multiprocessing as mp
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
_GRACE_S = 3.0  # for a worker to end by itself


def cores() -> int:
    """How many cores this process may use now."""
    return len(os.sched_getaffinity(0))


class WorkerDied(Exception):
    """The process that did a job ended before it gave a result."""


@dataclass
class _Worker(Generic[Job]):
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


def map_unordered(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Iterator[tuple[Job, Result | WorkerDied]]:
    """Yield (job, result) as they finish; `WorkerDied` in the result's place where a process crashed.

    `work` must not raise. The pool is ended when the iterator is closed, also in mid-run.
    """
    context = mp.get_context("spawn")
    queue = list(reversed(list(jobs)))
    pool = [_start(context, work) for _ in range(min(workers, len(queue)))]
    try:
        for worker in pool:
            _give(worker, queue)
        while busy := [w for w in pool if w.job is not None]:
            ready = wait([w.pipe for w in busy])
            for worker in [w for w in busy if w.pipe in ready]:
                job = worker.job
                assert job is not None
                try:
                    result: Result | WorkerDied = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    result = WorkerDied(_cause_of_death(worker.process))
                    pool[pool.index(worker)] = worker = _start(context, work)
                _give(worker, queue)
                yield job, result
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.process.join(_GRACE_S)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _start(context: Any, work: Callable[[Job], Result]) -> _Worker[Job]:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _give(worker: _Worker[Job], queue: list[Job]) -> None:
    worker.job = queue.pop() if queue else None
    if worker.job is not None:
        worker.pipe.send(worker.job)


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # frees locks and removes what is half written
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(work(job))


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, even by SIGKILL, so that no lock stays held."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


def _cause_of_death(process: SpawnProcess) -> str:
    process.join()
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process reading it died with {name} (is the file damaged, or memory full?)"
    return f"the process reading it ended with exit code {code}"
