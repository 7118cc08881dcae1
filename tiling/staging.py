"""Slides copied to a fast disk before they are read (`--stage DIR`): the next ones while workers tile the present ones.

Copies lie in a folder of the run's own in DIR, each in a folder of its own, and are removed when their slide has ended.
A run removes what killed runs left there: a lock with a heartbeat tells which those are.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tiling.config import TilingConfig
from tiling.finished import finished_store
from tiling.jobs.arrivals import Arrivals
from tiling.jobs.atomic import remove
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Arrival
from tiling.jobs.locks import Locked, lock, working_folder
from tiling.manifest import SlideRow
from tiling.slides.remote import copy_slide, find_slide, require_readable
from tiling.slides.urls import without_secrets
from tiling.store.patches import store_path

_COPIES_AT_ONCE = 8  # at most, and no more than workers
_LEAVE_S = 2.0  # for copies to stop; one whose server is silent is left to itself
_LOOK_S = 0.5  # whether there is room by now


class _Stopped(Exception):
    """The run is over; what is being copied is not needed."""


def require_stage(rows: Sequence[SlideRow], config: TilingConfig) -> None:
    """Raises RequestError where slides can be neither read nor copied."""
    urls = [row.url for row in rows if row.url]
    if urls and not config.stage:
        raise RequestError(
            f"{len(urls)} of {len(rows)} slides are URLs, which are read from copies; give --stage DIR, a folder on a "
            "fast local disk (--stage-gb says how much of it may be used)"
        )
    require_readable(urls)
    if config.stage:
        try:
            Path(config.stage).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--stage {config.stage}: cannot be made ({error.strerror})") from None
        if not os.access(config.stage, os.W_OK):
            raise RequestError(f"--stage {config.stage}: cannot be written to; choose another folder")


def with_remote_version(row: SlideRow) -> SlideRow:
    """The row with the version of what its URL names now; tried once. Raises SlideError."""

    def no_wait(seconds: float) -> None:
        raise SlideError(f"{row.slide_id}: does not answer at once")

    return replace(row, remote_version=find_slide(row.url, no_wait).version)


@contextmanager
def staged(row: SlideRow, config: TilingConfig, out: Path) -> Iterator[SlideRow]:
    """Yield the row with its slide copied by this process, for one without a `Stage`. Raises SlideError."""
    stage = Stage(config, out, 1)
    with stage.coming([row]) as arrivals:
        arrival = None
        while arrival is None:
            arrivals.bell.poll(None)
            arrival = arrivals.take()
        if arrival.fault:
            raise SlideError(arrival.fault)
        yield arrival.job


class Stage:
    """Copies the slides of one run, in their order, by threads of this process."""

    def __init__(self, config: TilingConfig, out: Path, workers: int) -> None:
        self._config, self._out, self._folder = config, out, Path(config.stage).absolute()
        self._copies = min(workers, _COPIES_AT_ONCE)
        self._room = _Room(int(config.stage_gb * 1e9))
        self._place: Path | None = None

    @contextmanager
    def coming(self, rows: Sequence[SlideRow]) -> Iterator[Arrivals[Arrival[SlideRow]]]:
        """Each row arrives, with the path of its copy. One that needs no copy, being finished or locked, as it is."""
        arrivals: Arrivals[Arrival[SlideRow]] = Arrivals(len(rows))
        stop, left = threading.Event(), iter(rows)
        taking = threading.Lock()

        def copy_all() -> None:
            with suppress(_Stopped):
                while True:
                    with taking:
                        row = next(left, None)
                    if row is None:
                        return
                    arrivals.put(self._arrival(row, place, stop))

        with working_folder(self._folder) as place:
            self._place = place
            threads = [threading.Thread(target=copy_all, daemon=True) for _ in range(self._copies)]
            try:
                for thread in threads:
                    thread.start()
                yield arrivals
            finally:
                stop.set()
                end = time.monotonic() + _LEAVE_S
                for thread in threads:
                    thread.join(max(0.0, end - time.monotonic()))
                self._room.leave_all()

    def ended(self, slide_id: str) -> None:
        assert self._place is not None
        remove(self._place / slide_id)
        self._room.leave(slide_id)

    def _arrival(self, row: SlideRow, place: Path, stop: threading.Event) -> Arrival[SlideRow]:
        def wait(seconds: float) -> None:
            if stop.wait(seconds) if seconds else stop.is_set():
                raise _Stopped

        try:
            wait(0)
            return Arrival(self._staged(row, place, wait))
        except _Stopped:
            raise
        except SlideError as error:
            fault = str(error)
        except Exception as error:  # one slide must leave the others alone
            fault = f"it cannot be copied ({type(error).__name__}: {without_secrets(str(error), row.url)})"
        with suppress(OSError):  # removed later, with all the rest
            self.ended(row.slide_id)
        return Arrival(row, fault)

    def _staged(self, row: SlideRow, place: Path, wait: Callable[[float], None]) -> SlideRow:
        if row.path is not None and self._needs_none(row):
            return row
        slide = find_slide(row.url or _path(row), wait)
        if row.url:
            row = replace(row, remote_version=slide.version)
            if self._needs_none(row):
                return row
        self._room.take(row.slide_id, slide.size, wait)
        return replace(row, path=copy_slide(row.url or _path(row), slide, place / row.slide_id, wait))

    def _needs_none(self, row: SlideRow) -> bool:
        """Whether a worker needs no copy to say how the slide ends: it is finished, damaged or done by another job."""
        path = store_path(self._out, row.slide_id)
        try:
            with lock(path):
                return finished_store(row, self._config, path) is not None
        except (SlideError, Locked):
            return True


class _Room:
    """Bytes that copies may take, given in the order in which they are asked for, so that a large slide gets its."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}
        self._turn, self._changed = threading.Lock(), threading.Condition()

    def take(self, slide_id: str, size: int, wait: Callable[[float], None]) -> None:
        """Wait until there is room. Raises SlideError where there never will be."""
        if size > self._most:
            raise SlideError(f"it has {size / 1e9:.3g} GB, --stage-gb allows {self._most / 1e9:.3g}; allow more")
        with self._turn, self._changed:
            while sum(self._taken.values()) + size > self._most:
                self._changed.wait(_LOOK_S)
                wait(0)
            self._taken[slide_id] = size

    def leave(self, slide_id: str) -> None:
        with self._changed:
            self._taken.pop(slide_id, None)
            self._changed.notify_all()

    def leave_all(self) -> None:
        for slide_id in list(self._taken):
            self.leave(slide_id)


def _path(row: SlideRow) -> Path:
    assert row.path is not None
    return row.path
