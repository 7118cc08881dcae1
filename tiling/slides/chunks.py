"""Levels that are stored in chunks: a region is put together from decoded chunks, of which the last used are kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from tiling.slides.slide import Pixels

CHUNK_BYTES_MAX = 512 << 20  # decoded; a larger one would have to be decoded whole to read one patch
_CACHE_BYTES = 64 << 20


class ChunkCache:
    """Decoded chunks, the last used of them up to 64 MiB. Threads may ask at once."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[Hashable, Pixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        chunk = decode()
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = chunk
                self._bytes += chunk.nbytes
            while self._bytes > _CACHE_BYTES and len(self._chunks) > 1:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes
        return chunk


def put_together(
    region: tuple[int, int, int, int],
    size: tuple[int, int],
    chunk_size: tuple[int, int],
    chunk_at: Callable[[int, int, bool], Pixels],
) -> Pixels:
    """(height, width, 3) of `region` (x, y, width, height) of a picture of `size`; white outside it.

    chunk_at: row, column, and whether the region's edge cuts it → the chunk's pixels; those beyond `size` are left out.
    """
    x, y, width, height = region
    chunk_w, chunk_h = chunk_size
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
    inside = (x0, y0, x1, y1) == (x, y, x + width, y + height)
    out = np.empty((height, width, 3), np.uint8) if inside else np.full((height, width, 3), 255, np.uint8)
    if x0 >= x1 or y0 >= y1:
        return out
    for row in range(y0 // chunk_h, -(-y1 // chunk_h)):
        for column in range(x0 // chunk_w, -(-x1 // chunk_w)):
            left, top = column * chunk_w, row * chunk_h
            cut = left < x0 or top < y0 or left + chunk_w > x1 or top + chunk_h > y1
            chunk = chunk_at(row, column, cut)
            a, b = max(left, x0), min(left + chunk.shape[1], x1)
            c, d = max(top, y0), min(top + chunk.shape[0], y1)
            out[c - y : d - y, a - x : b - x] = chunk[c - top : d - top, a - left : b - left]
    return out
