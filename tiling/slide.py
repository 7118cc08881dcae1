"""One protocol for every slide file, and the choice of the reader that opens it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from numpy.typing import NDArray

from tiling.errors import SlideError

Pixels = NDArray[np.uint8]
REDUCTIONS = (1, 2, 4, 8)  # at which a level can be read; JPEG decodes at these scales
NO_SUBSAMPLING = "444"


class Slide(Protocol):
    """An open slide. Level 0 is the finest; sizes are (width, height)."""

    path: Path
    backend: str  # "openslide", "tiff" or "image"
    level_sizes: tuple[tuple[int, int], ...]  # pixels of that level
    downsamples: tuple[float, ...]  # level-0 pixels per pixel of that level
    mpp: tuple[float, float] | None  # µm per level-0 pixel in x and y, as the file says
    mpp_source: str  # where the file says so, for example "openslide" or "OME-XML"
    subsampling: tuple[str, ...]  # of the colours in that level's JPEG: "444" (none, or unknown), "422" or "420"

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        """(height, width, 3) RGB of `level` made smaller by `reduction`, from (x, y); white outside the slide.

        All numbers are in pixels of that reduced picture, one of which is the mean of reduction × reduction pixels
        of the level (of REDUCTIONS). Threads may read at once. Raises SlideError where the file is damaged.
        """
        ...

    def close(self) -> None: ...


def open_slide(path: Path, overlapping: bool = False) -> Slide:
    """Open a slide with the reader that is right for it. Raises SlideError with reasons.

    overlapping: regions that overlap by more than their edges will be read.

    TIFF tiles are decoded directly where that gives OpenSlide's pixels: plain and OME-TIFF, Aperio SVS in JPEG,
    and what OpenSlide refuses. Other vendors' formats go through OpenSlide, JPEG and PNG images through Pillow.

    path: a slide file, or the folder of one DICOM series.
    """
    from tiling.image_reader import ImageReader
    from tiling.openslide_reader import OpenSlideReader
    from tiling.tiff_reader import TiffReader

    if path.is_dir():
        return OpenSlideReader(_dicom_file(path))
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes); copy it again from the scanner")
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


def _open_aperio(path: Path, overlapping: bool) -> Slide:
    """OpenSlide decides about an SVS; its JPEG tiles are decoded directly where the levels are found alike."""
    from tiling.openslide_reader import OpenSlideReader
    from tiling.tiff_reader import TiffReader

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


def _dicom_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")
    if not files:
        raise SlideError(f"{folder}: a folder without .dcm files; only a DICOM series may be given as a folder")
    return files[0]
