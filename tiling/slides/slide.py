"""One protocol for every slide file, and the choice of the reader that opens it."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
REDUCTIONS = (1, 2, 4, 8)  # at which a level can be read; JPEG decodes at these scales
NO_SUBSAMPLING = "444"
MPP_MIN, MPP_MAX = 0.05, 20.0  # µm per level-0 pixel that is believed


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
