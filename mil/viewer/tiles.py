"""A slide as square tiles for deep zoom: at zoom z a pixel is the mean of 2^z × 2^z level-0 pixels.

No library does it: OpenSlide's DeepZoomGenerator resizes each tile by itself with a filter that is no mean by area.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import SlideError
from tiling.slides.opening import open_slide
from tiling.slides.slide import REDUCTIONS, Pixels, Slide

TILE_PX = 256
_NEARLY = 1.01  # a level that is coarser by less is fine enough
_BLOCK_PX = 1024  # read at once, so that memory stays small where a slide has no pyramid


def zooms(size_l0: tuple[int, int]) -> int:
    """How many zooms there are; at the last one the whole slide is one tile."""
    return 1 + max(0, math.ceil(math.log2(max(size_l0) / TILE_PX)))


def read_tile(slide: Slide, zoom: int, column: int, row: int) -> Pixels:
    """(TILE_PX, TILE_PX, 3) of the level-0 square at (column, row) × TILE_PX × 2^zoom, white beyond the slide.

    A pixel that crosses the edge is the mean of what lies inside. Raises IndexError where there is no such tile,
    SlideError where the file is damaged.
    """
    size = slide.level_sizes[0]
    step = TILE_PX << max(zoom, 0)
    if not 0 <= zoom < zooms(size) or not 0 <= column * step < size[0] or not 0 <= row * step < size[1]:
        raise IndexError(f"no tile {zoom}/{column}/{row}")
    level, reduction = _finest_needed(slide, 2**zoom)
    pixel_l0 = slide.downsamples[level] * reduction  # width of a pixel as read
    x_first, across = _weights(column * step, size[0], 2**zoom, pixel_l0)
    y_first, down = _weights(row * step, size[1], 2**zoom, pixel_l0)
    mean = np.zeros((len(down), len(across), 3), np.float32)
    for y in range(0, down.shape[1], _BLOCK_PX):
        for x in range(0, across.shape[1], _BLOCK_PX):
            part_y, part_x = down[:, y : y + _BLOCK_PX], across[:, x : x + _BLOCK_PX]
            shape = part_x.shape[1], part_y.shape[1]
            block = slide.read(level, x_first + x, y_first + y, *shape, reduction).astype(np.float32)
            mean += np.tensordot(part_y, np.tensordot(part_x, block, (1, 1)), (1, 1))
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    tile[: len(down), : len(across)] = np.rint(mean).clip(0, 255)
    return tile


def _finest_needed(slide: Slide, wanted: float) -> tuple[int, int]:
    """The coarsest level that is fine enough, and by how much it can be read smaller."""
    fine = wanted * _NEARLY
    level = max((i for i, d in enumerate(slide.downsamples) if d <= fine), default=0)
    return level, max((r for r in REDUCTIONS if slide.downsamples[level] * r <= fine), default=1)


def _weights(start_l0: int, end_l0: int, wanted: int, pixel_l0: float) -> tuple[int, NDArray[np.float32]]:
    """The first pixel to read, and (wanted pixels, read pixels) their shares by area along one axis; rows sum to 1."""
    stop_l0 = min(end_l0, start_l0 + TILE_PX * wanted)
    edges = np.minimum(start_l0 + wanted * np.arange(math.ceil((stop_l0 - start_l0) / wanted) + 1), stop_l0) / pixel_l0
    first = math.floor(edges[0])
    read = np.arange(first, math.ceil(edges[-1] - 1e-9))
    cover = np.minimum(edges[1:, None], read + 1) - np.maximum(edges[:-1, None], read)
    cover = cover.clip(0)
    return first, (cover / cover.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class _Open:
    slide: Slide
    users: int = 0


class OpenSlides:
    """Slides by id, opened when wanted; of those not in use the ones used last stay open."""

    def __init__(self, paths: Mapping[str, Path | None], keep: int = 8) -> None:
        self._paths, self._keep, self._lock = dict(paths), keep, Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()

    @contextmanager
    def use(self, slide_id: str) -> Iterator[Slide]:
        """Raises KeyError for an id that is not served, SlideError where the slide cannot be opened."""
        with self._lock:
            if slide_id not in self._open:
                self._open[slide_id] = _Open(self._opened(slide_id))
            self._open.move_to_end(slide_id)
            entry = self._open[slide_id]
            entry.users += 1
        try:
            yield entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                self._close_idle(self._keep)

    def close(self) -> None:
        with self._lock:
            self._close_idle(0)

    def _opened(self, slide_id: str) -> Slide:
        path = self._paths[slide_id]
        if path is None:
            raise SlideError(f"{slide_id}: its path is empty in the slide table, or a URL, which is not read here")
        return open_slide(path)

    def _close_idle(self, keep: int) -> None:
        idle = [name for name, entry in self._open.items() if not entry.users]
        for name in idle[: max(0, len(self._open) - keep)]:
            self._open.pop(name).slide.close()
