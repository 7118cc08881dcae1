"""The choice of the reader that opens a slide file."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import openslide

from tiling.jobs.errors import SlideError
from tiling.slides.czi import CziReader
from tiling.slides.dicom import DicomReader, dicom_file
from tiling.slides.files import is_zarr
from tiling.slides.image import ImageReader
from tiling.slides.ome_zarr import OmeZarrReader
from tiling.slides.openslide import OpenSlideReader
from tiling.slides.slide import Slide
from tiling.slides.tiff import TiffReader

_EXTRAS: dict[str, tuple[str, str, Callable[[Path], Slide]]] = {  # ending: package, extra, reader
    ".dcm": ("wsidicom", "dicom", DicomReader),
    ".czi": ("pylibCZIrw", "czi", CziReader),
}
_TO_OME_TIFF = "convert it to OME-TIFF, for example with bfconvert of Bio-Formats"
_NOT_READ = {
    ".vsi": f"Olympus VSI is not read; {_TO_OME_TIFF}",
    ".isyntax": "Philips iSyntax is not read; export it as TIFF, or convert it with isyntax2raw to OME-Zarr",
    ".i2syntax": "Philips iSyntax is not read; export it as TIFF",
}


def open_slide(path: Path, overlapping: bool = False) -> Slide:
    """Open a slide with the reader that is right for it. Raises SlideError with reasons.

    overlapping: regions that overlap by more than their edges will be read.

    TIFF tiles are decoded directly where that gives OpenSlide's pixels: plain and OME-TIFF, Aperio SVS in JPEG,
    and what OpenSlide refuses. Other vendors' formats go through OpenSlide, and what it refuses of DICOM and CZI
    through the readers of extras; JPEG and PNG images through Pillow, OME-Zarr through zarr.

    path: a slide file, the folder of one DICOM series, or an OME-Zarr folder.
    """
    if is_zarr(path):
        return OmeZarrReader(path)
    if path.is_dir():
        path = dicom_file(path)
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in _NOT_READ:
        raise SlideError(f"{path}: {_NOT_READ[suffix]}")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes); copy it again from the scanner")
    if suffix in _EXTRAS:
        return _open_with_extra(path, *_EXTRAS[suffix])
    vendor = openslide.OpenSlide.detect_format(path)
    # OpenSlide reads plain TIFF without OME-XML and SubIFDs, and 16 bits as if they were 8: left to tifffile.
    tiff = functools.partial(TiffReader, overlapping=overlapping)
    readers: tuple[Callable[[Path], Slide], ...] = (OpenSlideReader, tiff, ImageReader)
    if vendor == "generic-tiff":
        readers = (tiff,)
    elif vendor == "aperio":
        readers = (functools.partial(_open_aperio, overlapping=overlapping),)
    reasons = []
    for reader in readers:
        try:
            return reader(path)
        except SlideError as error:
            reasons.append(str(error))
    raise SlideError(f"{path}: no reader opens it: {'; '.join(reasons)}. Is it damaged, or not a slide?")


def _open_with_extra(path: Path, package: str, extra: str, reader: Callable[[Path], Slide]) -> Slide:
    """OpenSlide, and what it refuses with the reader of an extra, so that the extra changes nothing of the rest."""
    try:
        return OpenSlideReader(path)
    except SlideError as error:
        refused = str(error)
    if importlib.util.find_spec(package) is None:
        raise SlideError(
            f"{path}: {refused}; the extra `{extra}` reads more: pip install 'slidemil[{extra}]'"
        ) from None
    try:
        return reader(path)
    except SlideError as error:
        raise SlideError(
            f"{path}: no reader opens it: {refused}; {package}: {error}. Is it damaged? If not, {_TO_OME_TIFF}"
        ) from error


def _open_aperio(path: Path, overlapping: bool) -> Slide:
    """OpenSlide decides about an SVS; its JPEG tiles are decoded directly where the levels are found alike."""

    slide = OpenSlideReader(path)
    try:
        fast = TiffReader(path, overlapping)
    except SlideError:
        return slide
    if fast.is_jpeg and (fast.level_sizes, fast.mpp) == (slide.level_sizes, slide.mpp):
        slide.close()
        return fast
    fast.close()
    return slide
