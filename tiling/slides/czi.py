"""ZEISS CZI slides through ZEISS's own library: pylibCZIrw (extra `czi`, LGPL-3), for what OpenSlide refuses.

OpenSlide reads uncompressed and zstd tiles; JPEG XR, which slide scanners write by default, is read here. All scenes
lie in one picture, as in OpenSlide, with white between them.
"""

import functools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import SlideError
from tiling.slides.chunks import CHUNK_BYTES_MAX, ChunkCache, put_together
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

_CACHE_BYTES = 64 << 20
_CELL_PX = 1024  # side of the squares in which levels are read
_WHITE = (1.0, 1.0, 1.0)


class CziReader:
    """A `Slide` over pylibCZIrw. Levels are those that the file holds of 1, 1/2, 1/4 … of its pixels."""

    backend = "pylibczirw"

    def __init__(self, path: Path) -> None:
        from pylibCZIrw import czi

        cache = czi.CacheOptions(max_memory_usage=_CACHE_BYTES)
        try:
            self._reader = czi.CziReader(str(path), cache_options=cache)
        except Exception as error:  # whatever libCZI makes of a damaged file
            raise SlideError(str(error)) from error
        try:
            _require_one_picture(self._reader)
            self._tiles = _tiles(self._reader)
            self._factors = sorted(self._tiles)
            box = self._reader.total_bounding_rectangle_no_pyramid
            self._corner = (box.x, box.y)
            self.level_sizes = tuple((max(1, box.w // f), max(1, box.h // f)) for f in self._factors)
            self.mpp = _mpp(self._reader.raw_metadata)
        except SlideError:
            self.close()
            raise
        except Exception as error:  # whatever libCZI makes of a damaged file
            self.close()
            raise SlideError(f"{type(error).__name__}: {error}") from error
        self.path = path
        self.mpp_source = "CZI metadata" if self.mpp else ""
        self.downsamples = tuple(float(factor) for factor in self._factors)
        self._cache = ChunkCache()
        self.subsampling: tuple[str, ...] = (NO_SUBSAMPLING,) * len(self._factors)

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        if reduction > 1:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, reduction)
        if level == 0:
            return self._compose(0, x, y, width, height)

        def chunk_at(row: int, column: int, cut: bool) -> Pixels:
            compose = functools.partial(self._compose, level, column * _CELL_PX, row * _CELL_PX, _CELL_PX, _CELL_PX)
            return self._cache.get((level, row, column), compose) if cut else compose()

        return put_together((x, y, width, height), self.level_sizes[level], (_CELL_PX, _CELL_PX), chunk_at)

    def _compose(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A region of a level as libCZI puts it together of tiles, white where there is none."""
        factor = self._factors[level]
        x0, y0, x1, y1 = (x, y, x + width, y + height)
        if level:
            x0, y0, x1, y1 = self._whole_tiles(factor, x0, y0, x1, y1)
            x1, y1 = x0 + _power_of_2(x1 - x0), y0 + _power_of_2(y1 - y0)
        corner = self._corner[0] + x0 * factor, self._corner[1] + y0 * factor
        region = (*corner, (x1 - x0) * factor, (y1 - y0) * factor)
        try:
            found = self._reader.read(roi=region, zoom=1 / factor, background_pixel=_WHITE)
        except Exception as error:  # whatever libCZI makes of a damaged tile
            raise SlideError(f"{self.path}: damaged at level {level}, x {x}, y {y} ({error})") from error
        if found.shape != (y1 - y0, x1 - x0, 3):
            raise SlideError(f"{self.path}: level {level}, x {x0}, y {y0}: {found.shape}, expected {y1 - y0, x1 - x0}")
        return np.ascontiguousarray(found[y - y0 :, x - x0 :][:height, :width, ::-1])

    def close(self) -> None:
        self._reader.close()

    def _whole_tiles(self, factor: int, x0: int, y0: int, x1: int, y1: int) -> tuple[int, int, int, int]:
        """A region of a level, grown to hold the tiles that it touches as a whole.

        libCZI counts a level's pixels in fractions of the tile and of the region that is read, and where these are not
        exact in binary a tile comes out one pixel too wide, over its neighbour: so no tile is cut, and regions are
        read in sizes of powers of 2.
        """
        corner = np.array(2 * self._corner)[:, None]
        left, top, right, bottom = (self._tiles[factor] - corner) // factor  # in pixels of the level
        touched = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
        if not touched.any():
            return x0, y0, x1, y1
        first = [int(side[touched].min()) for side in (left, top)]
        last = [int(side[touched].max()) + 1 for side in (right, bottom)]
        return min(x0, first[0]), min(y0, first[1]), max(x1, last[0]), max(y1, last[1])


def _require_one_picture(reader: Any) -> None:
    kinds = sorted(set(reader.pixel_types.values()))
    if len(reader.pixel_types) != 1 or kinds != ["Bgr24"]:
        raise SlideError(f"found {len(reader.pixel_types)} channels of {', '.join(kinds)}; expected 8-bit RGB")
    planes = {axis: end - start for axis, (start, end) in reader.total_bounding_box.items() if axis not in "XYC"}
    if any(count != 1 for count in planes.values()):
        sizes = ", ".join(f"{count} of {axis}" for axis, count in planes.items())
        raise SlideError(f"found planes: {sizes}; expected one")


def _tiles(reader: Any) -> dict[int, NDArray[np.int64]]:
    """Where tiles lie, (4, N) left, top, right, bottom in level-0 pixels, by how many times smaller they are stored.

    Only for 1 and powers of 2. Raises SlideError where a tile is too large to be decoded.
    """
    found: dict[int, list[tuple[int, int, int, int]]] = {1: []}
    largest = 0

    def look(_: int, tile: Any) -> bool:
        nonlocal largest
        box, stored = tile.logicalRect, tile.physicalSize
        largest = max(largest, 3 * stored.w * stored.h)
        factor = round(box.w / max(1, stored.w))
        if factor.bit_count() == 1:
            found.setdefault(factor, []).append((box.x, box.y, box.x + box.w, box.y + box.h))
        return True

    reader.enumerate_subblocks(look)
    if largest > CHUNK_BYTES_MAX:
        raise SlideError(f"tiles of {largest >> 20} MiB, too large to decode one by one")
    return {factor: np.array(tiles, np.int64).reshape(-1, 4).T for factor, tiles in found.items()}


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _mpp(xml: str) -> tuple[float, float] | None:
    """µm per pixel in x and y: the metadata has metres."""
    root = ElementTree.fromstring(xml)
    sizes = []
    for axis in "XY":
        value = root.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value")
        if not value or float(value) <= 0:
            return None
        sizes.append(float(value) * 1e6)
    return sizes[0], sizes[1]
