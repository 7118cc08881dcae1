"""DICOM slides through wsidicom (extra `dicom`, Apache-2.0), for what OpenSlide refuses.

OpenSlide decodes JPEG and JPEG 2000, and YBR_FULL not at all; wsidicom has the other transfer syntaxes and colours. Of
a sparse series, a tile that was not scanned is white.
"""

import functools
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.slides.chunks import CHUNK_BYTES_MAX, ChunkCache, put_together
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

logging.getLogger("wsidicom").addHandler(logging.NullHandler())  # what fails is said by the error

# What a decoder gives of YBR_FULL: RGB from JPEG, whose decoders convert; the stored Y, Cb, Cr from the others.
_CONVERTED = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG baseline and extended
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202")
_AS_STORED = (*_JPEG_2000, "1.2.840.10008.1.2.5")  # and RLE
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def dicom_file(folder: Path) -> Path:
    """Any file of the series in a folder. Raises SlideError where there is none."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")
    if not files:
        raise SlideError(
            f"{folder}: a folder without .dcm files; only a DICOM series or an OME-Zarr may be given as a folder"
        )
    return files[0]


class DicomReader:
    """A `Slide` over wsidicom, of the series that a .dcm file and others of its folder belong to."""

    backend = "wsidicom"
    mpp_source = "DICOM"

    def __init__(self, path: Path) -> None:
        import wsidicom

        files = _volume_files(path)
        try:
            self._slide = wsidicom.WsiDicom.open(files, settings=wsidicom.Settings(strict_tile_size_check=False))
        except Exception as error:  # whatever pydicom makes of a damaged file
            raise SlideError(f"{str(error) or type(error).__name__}; found {_kinds(files)}") from error
        try:
            _require_all_read(self._slide, files)
            levels = sorted(self._slide.levels, key=lambda level: -level.size.width)
            self._images = [_image(level) for level in levels]
        except SlideError:
            self._slide.close()
            raise
        self.path = path
        self.level_sizes = tuple((level.size.width, level.size.height) for level in levels)
        width, height = self.level_sizes[0]
        self.downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_sizes)
        self.mpp: tuple[float, float] | None = (levels[0].mpp.width, levels[0].mpp.height)
        self.subsampling: tuple[str, ...] = (NO_SUBSAMPLING,) * len(levels)
        self._cache = ChunkCache()

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        if reduction > 1:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, reduction)

        def chunk_at(row: int, column: int, cut: bool) -> Pixels:
            decode = functools.partial(self._decode, level, row, column)
            return self._cache.get((level, row, column), decode) if cut else decode()

        tile = self._images[level].tile_size
        return put_together((x, y, width, height), self.level_sizes[level], (tile.width, tile.height), chunk_at)

    def _decode(self, level: int, row: int, column: int) -> Pixels:
        from wsidicom.geometry import Point

        image = self._images[level]
        where = (Point(column, row), image.focal_planes[0], image.optical_paths[0])
        try:
            if image.is_sparse(*where):
                return np.full((image.tile_size.height, image.tile_size.width, 3), 255, np.uint8)
            pixels: Pixels = np.asarray(image.get_decoded_tile(*where, cache=False))
            if image.photometric_interpretation == "YBR_FULL" and image.transfer_syntax not in _CONVERTED:
                pixels = pixels if _is_rgb(image, where) else _rgb(pixels)
        except Exception as error:  # decoders of many libraries, each with errors of its own
            raise SlideError(f"{self.path}: damaged tile {column}, {row} of level {level} ({error})") from error
        if pixels.shape != (image.tile_size.height, image.tile_size.width, 3):
            raise SlideError(f"{self.path}: tile {column}, {row} of level {level} has shape {pixels.shape}")
        return pixels

    def close(self) -> None:
        self._slide.close()


def _volume_files(path: Path) -> dict[Path, tuple[int, int]]:
    """The files of the series of `path` that hold the slide itself, with its size in each: no label is opened."""
    import pydicom

    size = ("TotalPixelMatrixColumns", "TotalPixelMatrixRows")
    tags: list[Any] = ["SeriesInstanceUID", "ImageType", *size]
    found, series = {}, None
    for file in [path, *sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".dcm" and p != path)]:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            series = series or header.SeriesInstanceUID
            if header.SeriesInstanceUID == series and "VOLUME" in header.get("ImageType", []):
                found[file] = (int(header[size[0]].value), int(header[size[1]].value))
        except Exception as error:  # whatever pydicom makes of a damaged file
            raise SlideError(f"{file.name} is damaged or no DICOM slide ({error})") from error
    if not found:
        raise SlideError("no file of the series holds a slide (ImageType VOLUME)")
    return found


def _require_all_read(slide: Any, files: dict[Path, tuple[int, int]]) -> None:
    """wsidicom passes over files that it cannot read, and the finest level may be among them."""
    if len(slide.pyramids) != 1:
        raise SlideError(f"found {len(slide.pyramids)} images in the series, expected one")
    read = {(level.size.width, level.size.height) for level in slide.levels}
    missing = {file: size for file, size in files.items() if size not in read}
    if missing:
        raise SlideError(f"cannot read {len(missing)} of {len(files)} files of the series, {_kinds(missing)}")


def _kinds(files: Iterable[Path]) -> str:
    """Colours and compression of files, for an error."""
    import pydicom

    kinds = set()
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        syntax = header.file_meta.TransferSyntaxUID.name
        kinds.add(f"{header.get('PhotometricInterpretation')} in {syntax}")
    return " and ".join(sorted(kinds))


def _image(level: Any) -> Any:
    """wsidicom's image of a level. Raises SlideError unless it is 8-bit colour of one plane, in tiles."""
    if len(level.instances) != 1 or len(level.focal_planes) != 1 or len(level.optical_paths) != 1:
        raise SlideError(
            f"found {len(level.focal_planes)} focal planes and {len(level.optical_paths)} optical paths, expected one"
        )
    image = level.default_instance.image_data
    colours, syntax = image.photometric_interpretation, image.transfer_syntax
    if image.samples_per_pixel != 3 or image.bits != 8 or colours not in _COLOURS:
        raise SlideError(f"found {image.samples_per_pixel} samples of {image.bits} bits, {colours}; expected 8-bit RGB")
    if colours == "YBR_FULL" and syntax not in _CONVERTED + _AS_STORED:
        raise SlideError(f"found YBR_FULL in {syntax.name}, expected it in JPEG, JPEG 2000 or RLE")
    if 3 * math.prod((image.tile_size.width, image.tile_size.height)) > CHUNK_BYTES_MAX:
        raise SlideError(f"tiles of {image.tile_size.width} × {image.tile_size.height} px, too large to decode")
    return image


def _is_rgb(image: Any, where: tuple[Any, float, str]) -> bool:
    """Whether a JPEG 2000 tile says itself (in its COD segment) that its colours are transformed in decoding."""
    if image.transfer_syntax not in _JPEG_2000:
        return False
    tile = image.get_encoded_tile(*where)
    return bool(tile[tile.index(b"\xff\x52") + 8])


def _rgb(ybr: Pixels) -> Pixels:
    return np.asarray(Image.frombuffer("YCbCr", ybr.shape[1::-1], np.ascontiguousarray(ybr)).convert("RGB"))
