"""One protocol for every slide file, and the choice of the reader that opens it."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openslide
from numpy.typing import NDArray

from tiling.errors import SlideError

Pixels = NDArray[np.uint8]


class Slide(Protocol):
    """An open slide. Level 0 is the finest; sizes are (width, height)."""

    path: Path
    backend: str  # "openslide" or "tiff"
    level_sizes: tuple[tuple[int, int], ...]  # pixels of that level
    downsamples: tuple[float, ...]  # level-0 pixels per pixel of that level
    mpp: tuple[float, float] | None  # µm per level-0 pixel in x and y, as the file says
    mpp_source: str  # where the file says so, for example "openslide" or "OME-XML"

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """(height, width, 3) RGB from (x, y), all in pixels of `level`; white outside the slide.

        Raises SlideError where the file is damaged.
        """
        ...

    def close(self) -> None: ...


def open_slide(path: Path) -> Slide:
    """Open with OpenSlide, or with tifffile plain TIFF and what OpenSlide refuses. Raises SlideError with reasons.

    path: a slide file, or the folder of one DICOM series.
    """
    from tiling.openslide_reader import OpenSlideReader
    from tiling.tiff_reader import TiffReader

    if path.is_dir():
        return OpenSlideReader(_dicom_file(path))
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes); copy it again from the scanner")
    # OpenSlide reads plain TIFF without OME-XML and SubIFDs, and 16 bits as if they were 8: left to tifffile.
    plain = openslide.OpenSlide.detect_format(path) == "generic-tiff"
    readers: tuple[Any, ...] = (TiffReader,) if plain else (OpenSlideReader, TiffReader)
    reasons = []
    for reader in readers:
        try:
            slide: Slide = reader(path)
            return slide
        except SlideError as error:
            reasons.append(str(error))
    raise SlideError(f"{path}: no reader opens it: {'; '.join(reasons)}. Is it damaged, or not a slide?")


def _dicom_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")
    if not files:
        raise SlideError(f"{folder}: a folder without .dcm files; only a DICOM series may be given as a folder")
    return files[0]
