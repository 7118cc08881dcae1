"""Slides through tifffile: Aperio SVS in JPEG, plain and OME-TIFF, and what OpenSlide refuses.

tifffile reads the structure once; tiles are then read by position, so threads share one open file and memory
holds a few tiles and not the slide. JPEG tiles are decoded at full, half, quarter or eighth scale straight from
the DCT, which costs a fraction of decoding all pixels and averaging them.
"""

import functools
import logging
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.slides.chunks import CHUNK_BYTES_MAX, ChunkCache, put_together
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what fails is said by the error

_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF 6.0: inch, centimetre
_CHROMA = {"Gray": NO_SUBSAMPLING, "411": "420", "440": "422"}  # what the patch encoder can do of it


@dataclass(frozen=True)
class _Level:
    """One image of the pyramid, cut into chunks: tiles, or strips of the image's width."""

    page: Any  # tifffile.TiffPage
    width: int
    height: int
    chunk_w: int
    chunk_h: int
    columns: int
    jpeg_prefix: bytes  # SOI, colour space and shared tables; empty if the chunks are not JPEG

    def chunk_size(self, index: int) -> tuple[int, int]:
        """(width, height) that a decoded chunk must have; the last strip ends with the image."""
        if self.page.is_tiled:
            return self.chunk_w, self.chunk_h
        return self.chunk_w, min(self.chunk_h, self.height - index * self.chunk_h)


class TiffReader:
    """A `Slide` over tifffile, for 8-bit RGB images in tiles or strips, with or without a pyramid.

    overlapping: whole tiles will be asked for again, so they are kept too; else only those cut by a region's edge.
    """

    backend = "tiff"

    def __init__(self, path: Path, overlapping: bool = False) -> None:
        try:
            self._tiff = tifffile.TiffFile(path)
            self._levels = [_level(page) for page in _pyramid(self._tiff)]
            self.mpp, self.mpp_source = _read_mpp(self._tiff, self._levels[0].page)
        except SlideError:
            raise
        except (
            tifffile.TiffFileError,
            ElementTree.ParseError,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            ZeroDivisionError,
            OverflowError,
            MemoryError,
            struct.error,
        ) as error:
            raise SlideError(f"tifffile: {error}") from error
        self.path = path
        self._overlapping = overlapping
        self.level_sizes = tuple((level.width, level.height) for level in self._levels)
        width, height = self.level_sizes[0]
        self.downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_sizes)
        self._file = os.open(path, os.O_RDONLY)
        self.subsampling = tuple(self._subsampling(i) for i in range(len(self._levels)))
        self._cache = ChunkCache()

    @property
    def is_jpeg(self) -> bool:
        """Whether all levels are JPEG, decoded here and not by tifffile."""
        return all(level.jpeg_prefix for level in self._levels)

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        image, r = self._levels[level], reduction
        if image.chunk_w % r or image.chunk_h % r:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, r)
        size = -(-image.width // r), -(-image.height // r)

        def chunk_at(row: int, column: int, cut: bool) -> Pixels:
            index = row * image.columns + column
            decode = functools.partial(self._decode, level, index, r)
            return self._cache.get((level, index, r), decode) if cut or self._overlapping else decode()

        return put_together((x, y, width, height), size, (image.chunk_w // r, image.chunk_h // r), chunk_at)

    def _decode(self, level: int, index: int, reduction: int) -> Pixels:
        """One chunk, reduced; a chunk of no bytes is made from the finer level, or white where there is none."""
        image = self._levels[level]
        count = image.page.databytecounts[index]
        if not count:
            return self._sparse(level, index, reduction)
        try:
            data = os.pread(self._file, count, image.page.dataoffsets[index])
            if len(data) < count:
                raise ValueError("the file ends before it")
            if image.jpeg_prefix:
                return _decode_jpeg(_with_prefix(data, image.jpeg_prefix), image.chunk_size(index), reduction)
            page = image.page
            decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
            return _reduce(_opaque(decoded[0, : shape[1], : shape[2]], page.extrasamples), reduction)
        except Exception as error:  # decoders of many libraries, each with errors of its own
            raise SlideError(f"{self.path}: damaged tile {index} of level {level} ({error})") from error

    def _sparse(self, level: int, index: int, reduction: int) -> Pixels:
        """Aperio leaves tiles out of coarse levels that the finer ones have; elsewhere nothing was scanned there."""
        image = self._levels[level]
        size = tuple(n // reduction for n in image.chunk_size(index))
        if not self._tiff.is_svs or level == 0:
            return np.full((size[1], size[0], 3), 255, np.uint8)
        row, column = divmod(index, image.columns)
        factor = round(self.downsamples[level] / self.downsamples[level - 1])
        x, y = column * image.chunk_w, row * image.chunk_h
        finer = self.read(level - 1, x * factor, y * factor, image.chunk_w * factor, image.chunk_h * factor)
        return _reduce(finer, factor * reduction)

    def _subsampling(self, level: int) -> str:
        """Colour subsampling of the level's first chunk, as far as it is JPEG."""
        image = self._levels[level]
        if not image.jpeg_prefix:
            return NO_SUBSAMPLING
        page = image.page
        found = next(((o, n) for o, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n), None)
        if found is None:
            return NO_SUBSAMPLING
        try:
            data = _with_prefix(os.pread(self._file, found[1], found[0]), image.jpeg_prefix)
            chroma: str = simplejpeg.decode_jpeg_header(data)[3]
        except (ValueError, OSError) as error:
            raise SlideError(f"tifffile: damaged first tile of level {level} ({error})") from error
        return _CHROMA.get(chroma, chroma)

    def close(self) -> None:
        self._tiff.close()
        os.close(self._file)


def _decode_jpeg(data: bytes, size: tuple[int, int], reduction: int) -> Pixels:
    found = simplejpeg.decode_jpeg_header(data)[:2][::-1]
    if found != size:
        raise ValueError(f"it is {found[0]} × {found[1]} px, expected {size[0]} × {size[1]}")
    width, height = -(-size[0] // reduction), -(-size[1] // reduction)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, "RGB", fastupsample=False, min_width=width, min_height=height, min_factor=reduction
    )
    return pixels


def _reduce(pixels: Pixels, factor: int) -> Pixels:
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))


def _opaque(pixels: NDArray[np.uint8], extra: tuple[int, ...]) -> Pixels:
    """(H, W, 3) over white. `extra` is the tag that says what a fourth sample is; unspecified, it is left out."""
    if pixels.shape[2] == 3:
        return pixels
    colours = pixels[..., :3]
    if tifffile.EXTRASAMPLE.ASSOCALPHA in extra:  # the colours are multiplied by it already
        seen: Pixels = np.minimum(colours + (255 - pixels[..., 3:].astype(np.uint16)), 255).astype(np.uint8)
        return seen
    if tifffile.EXTRASAMPLE.UNASSALPHA in extra:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    return np.ascontiguousarray(colours)


def _with_prefix(data: bytes, prefix: bytes) -> bytes:
    """A whole JPEG image from a chunk: its own application markers give way to those of `prefix`."""
    start = 2  # after SOI
    while data[start : start + 1] == b"\xff" and 0xE0 <= data[start + 1] <= 0xEF:
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return prefix + data[start:]


def _jpeg_prefix(page: Any) -> bytes:
    """SOI, an Adobe marker that tells the colour space as the TIFF tag says it, and the tables that tiles share."""
    transform = tifffile.PHOTOMETRIC(page.photometric).name == "YCBCR"
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    tables = page.jpegtables[2:-2] if page.jpegtables else b""
    return b"\xff\xd8" + adobe + tables


def _pyramid(tiff: tifffile.TiffFile) -> list[Any]:
    """The pages of the levels, finest first: of an SVS those in tiles, elsewhere the largest series of the file."""
    if tiff.is_svs:
        return [page.keyframe for page in tiff.pages if page.keyframe is not None and page.keyframe.is_tiled]
    images = [series for series in tiff.series if len(series.shape) >= 2]
    if not images:
        raise SlideError("tifffile: no image in the file")
    largest = max(images, key=lambda series: series.keyframe.imagewidth * series.keyframe.imagelength)
    planes = len(largest.levels[0].pages)
    if planes != 1:
        raise SlideError(f"tifffile: found {planes} images of one size (focus planes or channels), expected one")
    holder = largest.keyframe.parent.filehandle.path
    if not os.path.samefile(holder, tiff.filehandle.path):
        raise SlideError(f"tifffile: its largest image is in another file, {holder}; give that one")
    return [level.keyframe for level in largest.levels]


def _level(page: Any) -> _Level:
    samples, kind = page.samplesperpixel, np.dtype(page.dtype)
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    if samples not in (3, 4) or kind != np.uint8 or page.planarconfig != 1 or colour not in ("RGB", "YCBCR"):
        raise SlideError(f"tifffile: found {samples} samples of {kind}, {colour}; expected 8-bit RGB, interleaved")
    chunk_h, chunk_w = page.chunks[:2]
    width, height = page.imagewidth, page.imagelength
    columns, rows = -(-width // chunk_w), -(-height // chunk_h)
    if not len(page.dataoffsets) == len(page.databytecounts) == rows * columns:
        raise SlideError(
            f"tifffile: {width} × {height} px in tiles of {chunk_w} × {chunk_h} px are {rows * columns} tiles, "
            f"the file lists {len(page.dataoffsets)}"
        )
    if chunk_w * chunk_h * samples > CHUNK_BYTES_MAX:
        raise SlideError(
            f"tifffile: {width} × {height} px in pieces of {chunk_w} × {chunk_h} px, too large to decode one by one; "
            "convert the file to a tiled TIFF"
        )
    jpeg = page.compression == tifffile.COMPRESSION.JPEG and samples == 3 and page.predictor == 1
    return _Level(page, width, height, chunk_w, chunk_h, columns, _jpeg_prefix(page) if jpeg else b"")


def _read_mpp(tiff: tifffile.TiffFile, page: Any) -> tuple[tuple[float, float] | None, str]:
    """µm per pixel and the place in the file that says so: Aperio text, OME-XML, or the resolution tags."""
    if tiff.is_svs:
        match = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)
        return ((float(match[1]), float(match[1])), "Aperio description") if match else (None, "")
    if tiff.ome_metadata:
        mpp = _ome_mpp(tiff.ome_metadata, page)
        if mpp:
            return mpp, "OME-XML"
    mpp = _tag_mpp(page)
    return (mpp, "TIFF resolution tags") if mpp else (None, "")


def _ome_mpp(xml: str, page: Any) -> tuple[float, float] | None:
    """µm per pixel of the OME-XML's image whose pixels are on `page`; None where it, or which one it is, is not said.

    An image that covers the page with directories beyond its own number is told from others by its size.
    """
    root = ElementTree.fromstring(xml)
    images = root.findall("{*}Image/{*}Pixels")
    size = str(page.imagewidth), str(page.imagelength)
    if len(images) > 1:
        images = [pixels for pixels in images if _is_on(page, pixels, root.get("UUID"))]
        images = [pixels for pixels in images if (pixels.get("SizeX"), pixels.get("SizeY")) == size] or images
    found = {_physical_size(pixels) for pixels in images}
    return found.pop() if len(found) == 1 else None


def _is_on(page: Any, pixels: ElementTree.Element, file_uuid: str | None) -> bool:
    """Whether a TiffData of the image counts the page; without a number of planes it counts all from its first."""
    for data in pixels.findall("{*}TiffData"):
        uuid = data.find("{*}UUID")
        here = uuid is None or uuid.text == file_uuid or uuid.get("FileName") == page.parent.filehandle.name
        first, planes = int(data.get("IFD", 0)), data.get("PlaneCount", "1" if "IFD" in data.attrib else None)
        if here and first <= page.index and (planes is None or page.index < first + int(planes)):
            return True
    return False


def _physical_size(pixels: ElementTree.Element) -> tuple[float, float] | None:
    """µm per pixel in x and y that an image of the OME-XML has."""
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
