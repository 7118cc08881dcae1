"""A Dask scheduler and its workers, each a process of its own that a test may kill."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 120


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


class DaskProcesses:
    """A context; its processes end with it. folder: of what they write."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self._folder, self._count = folder, workers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "DaskProcesses":
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", self._port)
        wait_for(self._answers)
        for _ in range(self._count):
            self.add_worker()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def add_worker(self, *arguments: object, nanny: bool = False) -> "subprocess.Popen[bytes]":
        """nanny: with a process that starts it again."""
        alone = ("--nanny" if nanny else "--no-nanny", "--nthreads", 1, "--local-directory", self._folder)
        self.workers.append(self._start("worker", self.address, *alone, *arguments))
        return self.workers[-1]

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def _answers(self) -> bool:
        with socket.socket() as trying:
            return trying.connect_ex(("127.0.0.1", self._port)) == 0

    def _start(self, role: str, *arguments: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "dask", role, "--no-dashboard", *map(str, arguments)]
        log = (self._folder / f"{role}-{time.monotonic_ns()}.log").open("wb")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2])])}
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, env=environment)
