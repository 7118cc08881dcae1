"""Patches of a store that holds coordinates only (`--pixels reference`), read from the slide itself.

Slide libraries are C code, which a damaged file can crash or hang up: processes of their own read the slide.
"""

import functools
import multiprocessing as mp
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from tiling.grid.resample import read_patch
from tiling.grid.scale import Scale
from tiling.jobs.errors import SlideError
from tiling.jobs.workers import STALL_S, WorkerDied, alive, map_unordered
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide
from tiling.slides.slide import Pixels, Slide
from tiling.store.patches import PatchStore

Read: TypeAlias = Callable[[int], Pixels]  # one patch (P, P, 3), by its index in the store
_AT_ONCE = 8  # patches that a process hands over
_MOST_AHEAD = 256  # patches that wait, above which no more are read


class SlidePatches(Protocol):
    """Patches of one slide, each to be read once, about in order."""

    def read(self, places: range) -> Pixels:
        """(n, P, P, 3) uint8 RGB. Thread-safe."""

    def stop(self) -> None:
        """Reads that wait need not wait any longer, and may fail."""


@contextmanager
def patches_of_slide(store: PatchStore, path: Path, indices: Sequence[int]) -> Iterator[SlidePatches]:
    """Yield the patches of these indices.

    Raises SlideError, here and when they are read, if `path` is not the slide that the store was made from, or if the
    process that reads it crashes or hangs up.
    """
    _require_same_slide(store, path)
    # A worker of Dask may have no children; if it dies, Dask replaces it.
    patches: _Here | _Ahead = (_Here if mp.current_process().daemon else _Ahead)(store, path, indices)
    try:
        yield patches
    finally:
        patches.close()


class _Here:
    """Read by this process."""

    def __init__(self, store: PatchStore, slide: Path, indices: Sequence[int]) -> None:
        self._patch, self._slide = _opened(store, slide)
        self._indices = indices

    def read(self, places: range) -> Pixels:
        return np.stack([self._patch(self._indices[i]) for i in places])

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._slide.close()


class _Ahead:
    """Read ahead by processes, and kept until they are asked for."""

    def __init__(self, store: PatchStore, slide: Path, indices: Sequence[int]) -> None:
        parts = [indices[i : i + _AT_ONCE] for i in range(0, len(indices), _AT_ONCE)]
        self._slide, self._indices = slide, indices
        self._there: dict[int, Pixels] = {}
        self._fault: SlideError | None = None
        self._stopped = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._parts = map_unordered(
            functools.partial(_read_part, store=store.path, slide=slide),
            parts,
            len(os.sched_getaffinity(0)),
            STALL_S,
            full=lambda: len(self._there) > _MOST_AHEAD,
            stopped=self._stopped.is_set,
        )

    def read(self, places: range) -> Pixels:
        wanted = [self._indices[i] for i in places]
        with self._one_at_a_time:
            try:
                while not self._there.keys() >= set(wanted):
                    self._take_next()
            except SlideError as error:
                self._fault = self._fault or error
                raise self._fault from None
            return np.stack([self._there.pop(index) for index in wanted])

    def _take_next(self) -> None:
        part, patches = next(self._parts, ((), WorkerDied("reading was stopped")))
        if isinstance(patches, WorkerDied):
            raise SlideError(f"{self._slide}: {patches}")
        self._there.update(zip(part, patches, strict=True))

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        with self._one_at_a_time:
            self._parts.close()


def _read_part(part: Sequence[int], store: Path, slide: Path) -> list[Pixels]:
    patch, _ = _kept_open(store, slide)
    found = []
    for index in part:
        alive()
        found.append(patch(index))
    return found


@functools.cache
def _kept_open(store: Path, slide: Path) -> tuple[Read, Slide]:
    return _opened(PatchStore(store), slide)


def _require_same_slide(store: PatchStore, path: Path) -> None:
    if not path.exists():
        raise SlideError(f"{path}: no such slide; {store.path} holds coordinates only and needs it")
    if slide_fingerprint(path) != store.info.fingerprint:
        raise SlideError(f"{path}: not the slide that {store.path} was made from; its content differs")


def _opened(store: PatchStore, path: Path) -> tuple[Read, Slide]:
    """What reads one patch, and the slide to close."""
    slide, info = open_slide(path, overlapping=store.info.overlap_px > 0), store.info
    scale = Scale(
        mpp_l0=info.mpp_l0,
        mpp_source=info.mpp_source,
        mpp=info.mpp,
        level=info.level,
        reduction=info.reduction,
        downsample=slide.downsamples[info.level] * info.reduction,
        patch_size_px=info.patch_size_px,
        patch_size_l0=info.patch_size_l0,
        stride_l0=info.patch_size_l0,
    )
    cut = functools.partial(read_patch, slide, scale, padding=info.padding_rgb)
    return lambda index: cut(*store.coords_l0[index].tolist()), slide
