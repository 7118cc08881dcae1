"""Jobs that become ready one by one, made so by other threads, while workers do those that are there already."""

import threading
from collections import deque
from collections.abc import Iterable
from multiprocessing import Pipe
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Arrivals(Generic[Job]):
    """A queue of `expected` jobs in all, which any thread feeds and one empties.

    bell: can be read, for multiprocessing.connection.wait, when a job has come since the queue was last found empty.
    """

    def __init__(self, expected: int, there: Iterable[Job] = ()) -> None:
        self.expected = expected
        self.bell, self._ring = Pipe(duplex=False)
        self._there = deque(there)
        self._taken = 0
        self._changing = threading.Lock()

    @property
    def left(self) -> bool:
        """Whether some were not taken yet, there or not."""
        return self._taken < self.expected

    def put(self, job: Job) -> None:
        with self._changing:
            if not self._there:
                self._ring.send_bytes(b"!")
            self._there.append(job)

    def take(self) -> Job | None:
        """The next of those that are there now; None if there is none."""
        with self._changing:
            if self.bell.poll():
                self.bell.recv_bytes()
            if not self._there:
                return None
            self._taken += 1
            return self._there.popleft()
