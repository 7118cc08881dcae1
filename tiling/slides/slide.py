"""One protocol for every slide file, and how a level is read smaller than it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
REDUCTIONS = (1, 2, 4, 8)  # at which a level can be read; JPEG decodes at these scales
Colour = tuple[int, int, int]  # RGB
NO_SUBSAMPLING = "444"
_AT_ONCE_PX = 1 << 24  # of a level, held at once to be made smaller: 64 MiB as OpenSlide gives them
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


def read_reduced(
    read: Callable[[int, int, int, int], Pixels], x: int, y: int, width: int, height: int, reduction: int
) -> Pixels:
    """What `Slide.read` gives, by averaging what `read` gives of (x, y, width, height) in the level's own pixels.

    In bands as wide as the region, so that memory stays small and a strip or a row of tiles is decoded once.
    """
    rows = max(1, _AT_ONCE_PX // (width * reduction**2))
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        count = min(rows, height - top)
        band = read(x * reduction, (y + top) * reduction, width * reduction, count * reduction)
        out[top : top + count] = np.asarray(Image.fromarray(band).reduce(reduction))
    return out
