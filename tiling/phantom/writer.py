"""Write a picture that is a function of position as a pyramidal tiled JPEG TIFF: one pass, bounded memory.

Levels have downsamples of exactly 1, 4 and 16; the reduced ones are area averages of level 0, made from the
same pixels that are encoded. `.svs` has Aperio's page order (level 0, thumbnail, levels) and description,
`.tiff` the reduced levels as pages of type "reduced image" and the resolution per cm.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling.jobs.atomic import atomic_file

U8 = NDArray[np.uint8]
MIN_CHUNK_PX = 512  # side of the squares that are painted at once
THUMBNAIL_PX = 768
BIGTIFF_FROM_PX = 2**31  # at less than 1 byte per pixel, smaller slides stay well below 4 GB
APERIO = "Aperio Image Library v10.0.51\r\n"
SPOOL_BYTES = 16 * 2**20


class PixelSpec(Protocol):
    """What a file needs to know of its picture."""

    @property
    def width_px(self) -> int: ...
    @property
    def height_px(self) -> int: ...
    @property
    def mpp(self) -> float: ...
    @property
    def tile_px(self) -> int: ...
    @property
    def jpeg_quality(self) -> int: ...


class PixelSource(Protocol):
    """A picture on an unlimited plane."""

    @property
    def spec(self) -> PixelSpec: ...
    @property
    def glass_rgbx(self) -> U8:
        """Colour of empty glass, (4,)."""

    def is_glass(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> bool:
        """True only if a region is nothing but glass."""

    def render_rgbx(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> U8:
        """Region (height_px, width_px, 4)."""


def level_sizes(width_px: int, height_px: int) -> list[tuple[int, int]]:
    """(width, height) of the three levels: level 0 rounded up so that the others are exactly 1/4 and 1/16."""
    width, height = -(-width_px // 16) * 16, -(-height_px // 16) * 16
    return [(width // d, height // d) for d in (1, 4, 16)]


def write_pyramid(source: PixelSource, path: Path) -> None:
    """Write `source` to `path`, whose suffix decides the form."""
    if path.suffix not in (".svs", ".tiff"):
        raise ValueError(f"{path}: a phantom is written as .svs or .tiff, found suffix {path.suffix!r}")
    with atomic_file(path) as temporary, temporary.open("xb") as file:
        _write_pages(file, source, aperio=path.suffix == ".svs")


def _write_pages(file: IO[bytes], source: PixelSource, aperio: bool) -> None:
    spec = source.spec
    sizes = level_sizes(spec.width_px, spec.height_px)
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        pyramid = _OnePass(source, spool)
        with tifffile.TiffWriter(file, bigtiff=sizes[0][0] * sizes[0][1] > BIGTIFF_FROM_PX) as tiff:
            tiff.write(pyramid.tiles(), **_tiled_page(spec, sizes[0], 1, aperio))
            if aperio:
                thumbnail = pyramid.thumbnail()
                tiff.write(thumbnail, **_thumbnail_page(spec, sizes[0], thumbnail.shape))
            tiff.write(pyramid.tiles_4(), **_tiled_page(spec, sizes[1], 4, aperio))
            tiff.write(pyramid.tiles_16(), **_tiled_page(spec, sizes[2], 16, aperio))


def _tiled_page(spec: PixelSpec, size: tuple[int, int], downsample: int, aperio: bool) -> dict[str, Any]:
    """Arguments of TiffWriter.write for one level."""
    page: dict[str, Any] = {
        "shape": (size[1], size[0], 3),
        "dtype": np.uint8,
        "tile": (spec.tile_px, spec.tile_px),
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "compression": "jpeg",
        "metadata": None,
        "software": False,
    }
    if aperio:
        return page | {"description": _aperio_description(spec, size, downsample)}
    per_cm = 10_000 / (spec.mpp * downsample)
    return page | {
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER",
        "subfiletype": 0 if downsample == 1 else 1,
    }


def _aperio_description(spec: PixelSpec, size: tuple[int, int], downsample: int) -> str:
    width, height = level_sizes(spec.width_px, spec.height_px)[0]
    tiles = f"({spec.tile_px}x{spec.tile_px})"
    what = f"{width}x{height} [0,0 {width}x{height}] {tiles}"
    if downsample > 1:
        what += f" -> {size[0]}x{size[1]}"
    codec = f"JPEG/YCC Q={spec.jpeg_quality}"
    return f"{APERIO}{what} {codec}|AppMag = {10 / spec.mpp:g}|MPP = {spec.mpp!r}"


def _thumbnail_page(spec: PixelSpec, size: tuple[int, int], shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": spec.jpeg_quality},
        "rowsperstrip": shape[0],
        "metadata": None,
        "software": False,
        "description": f"{APERIO}{size[0]}x{size[1]} -> {shape[1]}x{shape[0]} - |AppMag = {10 / spec.mpp:g}",
    }


class _OnePass:
    """Encodes level 0 tile by tile and gathers the reduced levels on the way.

    Level 1 is kept as JPEG in a file as soon as a row of its tiles is whole; level 2 is kept in memory, 1/256
    of the pixels of level 0. The generators must be used in the order tiles, tiles_4, tiles_16.
    """

    def __init__(self, source: PixelSource, spool: IO[bytes]) -> None:
        self._source, self._spec, self._spool = source, source.spec, spool
        self._sizes = level_sizes(self._spec.width_px, self._spec.height_px)
        tile = self._spec.tile_px
        self._per_chunk = -(-MIN_CHUNK_PX // tile)  # tiles along a chunk
        self._chunk_px = self._per_chunk * tile
        width, height = self._sizes[0]
        self._n_chunks = -(-width // self._chunk_px), -(-height // self._chunk_px)  # across, down
        self._glass_tile = self._encode(self._glass(tile, tile))
        self._level_4 = self._glass(self._chunk_px, self._tiled(self._sizes[1][0]))  # four rows of chunks
        self._level_16 = self._glass(self._tiled(self._sizes[2][1]), self._tiled(self._sizes[2][0]))  # H, W, 3
        self._lengths_4: list[int] = []

    def _tiled(self, length_px: int) -> int:
        return -(-length_px // self._spec.tile_px) * self._spec.tile_px

    def _glass(self, height_px: int, width_px: int) -> U8:
        """A picture of empty glass, (height_px, width_px, 3)."""
        return np.tile(self._source.glass_rgbx[:3], (height_px, width_px, 1))

    def _encode(self, tile: U8) -> bytes:
        jpeg: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(tile),
            self._spec.jpeg_quality,
            colorspace="RGB" if tile.shape[2] == 3 else "RGBX",
            colorsubsampling="420",
        )
        return jpeg

    def tiles(self) -> Iterator[bytes]:
        """JPEG tiles of level 0, row by row."""
        across, down = (-(-n // self._spec.tile_px) for n in self._sizes[0])
        for chunk_row in range(self._n_chunks[1]):
            rows: list[list[bytes]] = [[] for _ in range(self._per_chunk)]
            for chunk_column in range(self._n_chunks[0]):
                for row, encoded in zip(rows, self._chunk(chunk_column, chunk_row), strict=True):
                    row.extend(encoded)
            if chunk_row % 4 == 3 or chunk_row == self._n_chunks[1] - 1:
                self._spool_level_4(chunk_row // 4)
            for row in rows[: down - chunk_row * self._per_chunk]:
                yield from row[:across]

    def _chunk(self, column: int, row: int) -> list[list[bytes]]:
        """Encoded tiles of one chunk, in rows; its reduced pictures go to their levels."""
        size, tile = self._chunk_px, self._spec.tile_px
        x_l0, y_l0 = column * size, row * size
        if self._source.is_glass(x_l0, y_l0, size, size):
            return [[self._glass_tile] * self._per_chunk] * self._per_chunk
        pixels = self._source.render_rgbx(x_l0, y_l0, size, size)
        self._reduce_into(self._level_4, pixels, 4, x_l0 // 4, (row % 4) * size // 4)
        self._reduce_into(self._level_16, pixels, 16, x_l0 // 16, y_l0 // 16)
        starts = range(0, size, tile)
        return [[self._encode(pixels[y : y + tile, x : x + tile]) for x in starts] for y in starts]

    @staticmethod
    def _reduce_into(level: U8, pixels: U8, factor: int, x: int, y: int) -> None:
        """Area average of `pixels` into `level` at (x, y); what lies beyond the level is dropped."""
        image = Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1)
        reduced = np.asarray(image.reduce(factor))
        target = level[y : y + reduced.shape[0], x : x + reduced.shape[1]]
        target[...] = reduced[: target.shape[0], : target.shape[1], :3]

    def _spool_level_4(self, group: int) -> None:
        """Encode the whole tile rows that four rows of chunks give at 1/4, and empty the buffer."""
        tile, (width, height) = self._spec.tile_px, self._sizes[1]
        for y in range(0, min(self._chunk_px, height - group * self._chunk_px), tile):
            for x in range(0, width, tile):
                jpeg = self._encode(self._level_4[y : y + tile, x : x + tile])
                self._lengths_4.append(self._spool.write(jpeg))
        self._level_4[...] = self._source.glass_rgbx[:3]

    def tiles_4(self) -> Iterator[bytes]:
        """JPEG tiles of the level at 1/4."""
        self._spool.seek(0)
        for length in self._lengths_4:
            yield self._spool.read(length)

    def tiles_16(self) -> Iterator[bytes]:
        """JPEG tiles of the level at 1/16."""
        tile, (width, height) = self._spec.tile_px, self._sizes[2]
        for y in range(0, height, tile):
            for x in range(0, width, tile):
                yield self._encode(self._level_16[y : y + tile, x : x + tile])

    def thumbnail(self) -> U8:
        """The whole slide, at most THUMBNAIL_PX a side: (height, width, 3)."""
        width, height = self._sizes[2]
        factor = -(-max(width, height) // THUMBNAIL_PX)
        strips = (self._level_16[y : min(y + factor, height), :width] for y in range(0, height, factor))
        return np.concatenate([np.asarray(Image.fromarray(strip).reduce(factor)) for strip in strips])
