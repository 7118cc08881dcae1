"""Slides through tifffile: plain and OME-TIFF, and what OpenSlide refuses (JPEG 2000, WebP, strips).

Tiles are read by position and decoded one by one, so memory holds a few tiles and not the slide.
"""

import os
import re
import struct
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from tiling.errors import SlideError
from tiling.slide import Pixels

_CACHE_BYTES = 64 << 20
_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF 6.0: inch, centimetre


class TiffReader:
    """A `Slide` over tifffile, for 8-bit RGB images in tiles or strips, with or without a pyramid."""

    backend = "tiff"

    def __init__(self, path: Path) -> None:
        try:
            self._tiff = tifffile.TiffFile(path)
            series = _largest_series(self._tiff)
            self._pages = [_page(level) for level in series.levels]
            self.mpp, self.mpp_source = _read_mpp(self._tiff, self._pages[0])
        except SlideError:
            raise
        except (
            tifffile.TiffFileError,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            struct.error,
        ) as error:
            raise SlideError(f"tifffile: {error}") from error
        self.path = path
        self.level_sizes = tuple((p.imagewidth, p.imagelength) for p in self._pages)
        width, height = self.level_sizes[0]
        self.downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_sizes)
        self._file = os.open(path, os.O_RDONLY)
        self._cache: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        page = self._pages[level]
        tile_h, tile_w = page.chunks[:2]
        out = np.full((height, width, 3), 255, np.uint8)
        x1, y1 = min(x + width, page.imagewidth), min(y + height, page.imagelength)
        columns = -(-page.imagewidth // tile_w)
        for row in range(max(y, 0) // tile_h, -(-y1 // tile_h)):
            for column in range(max(x, 0) // tile_w, -(-x1 // tile_w)):
                tile = self._tile(level, row * columns + column)
                left, top = column * tile_w, row * tile_h
                a, b = max(left, x, 0), min(left + tile.shape[1], x1)
                c, d = max(top, y, 0), min(top + tile.shape[0], y1)
                out[c - y : d - y, a - x : b - x] = tile[c - top : d - top, a - left : b - left]
        return out

    def _tile(self, level: int, index: int) -> Pixels:
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tile = self._decode(level, index)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached_bytes += tile.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, level: int, index: int) -> Pixels:
        """One tile or strip, cut to the part inside the image; a tile of no bytes is white."""
        page = self._pages[level]
        try:
            count = page.databytecounts[index]
            data = os.pread(self._file, count, page.dataoffsets[index]) if count else None
            if data is not None and len(data) < count:
                raise ValueError(f"the file ends before tile {index}")
            decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        except Exception as error:  # decoders of many libraries, each with errors of its own
            raise SlideError(f"{self.path}: damaged tile {index} of level {level} ({error})") from error
        if decoded is None:
            return np.full((shape[1], shape[2], 3), 255, np.uint8)
        tile: Pixels = decoded[0, : shape[1], : shape[2], :3]
        return tile

    def close(self) -> None:
        self._tiff.close()
        os.close(self._file)


def _largest_series(tiff: tifffile.TiffFile) -> Any:
    images = [s for s in tiff.series if len(s.shape) >= 2]
    if not images:
        raise SlideError("tifffile: no image in the file")
    return max(images, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)


def _page(level: Any) -> Any:
    page = level.keyframe
    samples, kind = page.samplesperpixel, np.dtype(page.dtype)
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    if (
        samples not in (3, 4)
        or kind != np.uint8
        or page.planarconfig != 1
        or len(level.pages) != 1
        or colour not in ("RGB", "YCBCR")
    ):
        raise SlideError(
            f"tifffile: found {samples} samples of {kind} in {len(level.pages)} planes, {colour}; "
            "expected one image of 8-bit RGB, interleaved"
        )
    return page


def _read_mpp(tiff: tifffile.TiffFile, page: Any) -> tuple[tuple[float, float] | None, str]:
    """µm per pixel and the place in the file that says so: Aperio text, OME-XML, then the resolution tags."""
    if tiff.is_svs:
        match = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)
        if match:
            return (float(match[1]), float(match[1])), "Aperio description"
    if tiff.ome_metadata:
        mpp = _ome_mpp(tiff.ome_metadata)
        if mpp:
            return mpp, "OME-XML"
    mpp = _tag_mpp(page)
    return (mpp, "TIFF resolution tags") if mpp else (None, "")


def _ome_mpp(xml: str) -> tuple[float, float] | None:
    pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    if pixels is None:
        return None
    sizes = []
    for axis in ("X", "Y"):
        size = pixels.get(f"PhysicalSize{axis}")
        unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None or unit is None:
            return None
        sizes.append(float(size) * unit)
    return sizes[0], sizes[1]


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    unit = page.tags.get("ResolutionUnit")
    um = _UM_PER_RESOLUTION_UNIT.get(int(unit.value) if unit else 2)
    sizes = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        if tag is None or um is None or 0 in tag.value:
            return None
        sizes.append(um * tag.value[1] / tag.value[0])
    return sizes[0], sizes[1]
