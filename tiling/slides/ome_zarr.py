"""Slides through zarr: OME-Zarr folders of versions 0.4 (zarr v2) and 0.5 (zarr v3).

Read are pyramids of 8-bit RGB: axes y, x and a c of three channels, in any order, t and z of one plane. A chunk that is
not there has the array's fill value. Of a folder with several images (bioformats2raw), the largest is the slide.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tiling.jobs.errors import SlideError
from tiling.slides.chunks import CHUNK_BYTES_MAX, ChunkCache, put_together
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

_VERSIONS = ("0.4", "0.5")
_UM_PER_UNIT = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


@dataclass(frozen=True)
class _Level:
    """One array of the pyramid. `axes` names its dimensions."""

    array: zarr.Array[Any]
    axes: str

    def along(self, axis: str, values: Sequence[int]) -> int:
        return int(values[self.axes.index(axis)])

    @property
    def size(self) -> tuple[int, int]:
        return self.along("x", self.array.shape), self.along("y", self.array.shape)

    @property
    def chunk_size(self) -> tuple[int, int]:
        return self.along("x", self.array.chunks), self.along("y", self.array.chunks)

    def read(self, rows: slice, columns: slice) -> Pixels:
        """(rows, columns, 3)"""
        found = np.asarray(self.array[tuple({"y": rows, "x": columns, "c": slice(None)}.get(a, 0) for a in self.axes)])
        kept = [axis for axis in self.axes if axis in "yxc"]
        return np.ascontiguousarray(found.transpose([kept.index(axis) for axis in "yxc"]))


class OmeZarrReader:
    """A `Slide` over zarr."""

    backend = "ome-zarr"

    def __init__(self, path: Path) -> None:
        try:
            self._levels, self.mpp = _largest_image(zarr.open_group(path, mode="r"))
        except SlideError as error:
            raise SlideError(f"{path}: {error}") from None
        except Exception as error:  # zarr passes on what its codecs and the metadata of the file make it raise
            raise SlideError(f"{path}: no OME-Zarr that can be read ({type(error).__name__}: {error})") from error
        self.path = path
        self.level_sizes = tuple(level.size for level in self._levels)
        width, height = self.level_sizes[0]
        self.downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_sizes)
        self.mpp_source = "OME-Zarr" if self.mpp else ""
        self.subsampling: tuple[str, ...] = (NO_SUBSAMPLING,) * len(self._levels)
        self._cache = ChunkCache()

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        if reduction > 1:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, reduction)

        def chunk_at(row: int, column: int, cut: bool) -> Pixels:
            decode = functools.partial(self._decode, level, row, column)
            return self._cache.get((level, row, column), decode) if cut else decode()

        image = self._levels[level]
        return put_together((x, y, width, height), image.size, image.chunk_size, chunk_at)

    def _decode(self, level: int, row: int, column: int) -> Pixels:
        image = self._levels[level]
        (w, h), (width, height) = image.chunk_size, image.size
        try:
            return image.read(
                slice(row * h, min((row + 1) * h, height)), slice(column * w, min((column + 1) * w, width))
            )
        except Exception as error:  # codecs of many libraries, each with errors of its own
            raise SlideError(f"{self.path}: damaged chunk {row}, {column} of level {level} ({error})") from error

    def close(self) -> None:
        """Nothing is kept open."""


def _largest_image(root: zarr.Group) -> tuple[list[_Level], tuple[float, float] | None]:
    images = [root] if _described(root) else [g for name, g in root.groups() if name.isdigit() and _described(g)]
    if not images:
        raise SlideError("a zarr folder without OME-Zarr's `multiscales`; it is no slide")
    found = [_image(group) for group in images]
    return max(found, key=lambda image: math.prod(image[0][0].size))


def _described(group: zarr.Group) -> Mapping[str, Any]:
    """What OME-Zarr says of an image; in version 0.5 below the key `ome`."""
    attributes = group.attrs.asdict()
    described = attributes.get("ome", attributes)
    return described if isinstance(described, Mapping) and "multiscales" in described else {}


def _image(group: zarr.Group) -> tuple[list[_Level], tuple[float, float] | None]:
    """The levels of an image, finest first, and its µm per pixel in x and y."""
    described = _described(group)
    pyramid = described["multiscales"][0]
    version = described.get("version", pyramid.get("version"))
    if version not in _VERSIONS:
        raise SlideError(f"OME-Zarr version {version}, expected {' or '.join(_VERSIONS)}")
    axes = "".join(str(axis["name"]) for axis in pyramid["axes"])
    if sorted(axes) not in (sorted("cyx" + more) for more in ("", "z", "t", "tz")):
        raise SlideError(f"axes {', '.join(axes)}; expected y, x, three channels c, and t and z of one plane")
    levels = []
    for entry in pyramid["datasets"]:
        array = group[entry["path"]]
        if not isinstance(array, zarr.Array):
            raise SlideError(f"level {entry['path']!r} is not an array")
        levels.append(_checked(_Level(array, axes)))
    return levels, _mpp(pyramid, axes)


def _checked(level: _Level) -> _Level:
    shape = dict(zip(level.axes, level.array.shape, strict=True))
    wrong_planes = any(shape[axis] != 1 for axis in level.axes if axis in "tz")
    if level.array.dtype != np.uint8 or shape["c"] != 3 or wrong_planes or 0 in level.size:
        sizes = ", ".join(f"{axis} {size}" for axis, size in shape.items())
        raise SlideError(f"found {level.array.dtype} of {sizes}; expected uint8 RGB (c 3), t and z of one plane")
    if max(math.prod(level.array.chunks), 3 * math.prod(level.chunk_size)) > CHUNK_BYTES_MAX:
        raise SlideError(f"chunks of {level.array.chunks}, too large to decode one by one; write it in smaller chunks")
    return level


def _mpp(pyramid: Mapping[str, Any], axes: str) -> tuple[float, float] | None:
    """None where an axis has no unit of length, or the level no scale."""
    units = {axis["name"]: _UM_PER_UNIT.get(axis.get("unit", "")) for axis in pyramid["axes"]}
    steps = [*pyramid["datasets"][0]["coordinateTransformations"], *pyramid.get("coordinateTransformations", ())]
    scales = [step["scale"] for step in steps if step["type"] == "scale"]
    if not scales or units["x"] is None or units["y"] is None:
        return None
    x, y = (math.prod(float(scale[axes.index(axis)]) for scale in scales) for axis in "xy")
    return x * units["x"], y * units["y"]
