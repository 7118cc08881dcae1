"""A map over threads that keeps order and never runs far ahead of who takes the results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], most: int, now: Callable[[], int] | None = None
) -> Generator[Result, None, None]:
    """Yield work(item) in order; at most `most` threads work at once, and one result waits.

    now: how many threads may work at this moment, asked before each item; 1 works in the caller's own thread.
    """
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(most) as pool:
        try:
            for item in items:
                threads = min(most, now()) if now else most
                while len(running) > (threads if threads > 1 else 0):
                    yield running.popleft().result()
                if threads > 1:
                    running.append(pool.submit(work, item))
                else:
                    yield work(item)
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
