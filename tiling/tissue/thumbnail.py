"""A slide as one small picture of about 8 µm per pixel."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.jobs.workers import alive
from tiling.slides.slide import REDUCTIONS, Pixels, Slide

TARGET_MPP = 8.0
UNSCALED_SIDE_PX = 1024  # longest side of the thumbnail where the scale is unknown
_BLOCK_PX = 2048
_LARGEST_PX = 1 << 26  # of a thumbnail: 6.5 cm × 6.5 cm of glass


@dataclass(frozen=True)
class Thumbnail:
    """pixels (H, W, 3) uint8 RGB; a pixel is `downsample` level-0 pixels wide."""

    pixels: Pixels
    downsample: float


def mask_downsample(slide: Slide, mpp_l0: float) -> float:
    """Downsample of the thumbnail that the mask is made on: about 8 µm per pixel."""
    if math.isnan(mpp_l0):
        return max(1.0, max(slide.level_sizes[0]) / UNSCALED_SIDE_PX)
    return max(1.0, TARGET_MPP / mpp_l0)


def read_thumbnail(slide: Slide, wanted: float) -> Thumbnail:
    """The slide at about `wanted` downsample by area averaging, read in blocks so that memory stays small.

    Raises SlideError for a size that no glass can have.
    """
    level = max((i for i, d in enumerate(slide.downsamples) if d <= wanted * 1.01), default=0)
    factor = max(1, round(wanted / slide.downsamples[level]))
    reduction = max(r for r in REDUCTIONS if r == 1 or 2 * r <= factor)  # where the slide has no pyramid
    cell = round(factor / reduction)  # pixels so read in one of the thumbnail, along each axis
    width, height = (math.ceil(n / reduction) for n in slide.level_sizes[level])
    if width * height > _LARGEST_PX * cell**2:
        size = " × ".join(map(str, slide.level_sizes[level]))
        raise SlideError(f"{slide.path}: says it has {size} px at level {level}; is the file damaged?")
    out = np.empty((math.ceil(height / cell), math.ceil(width / cell), 3), np.uint8)
    step = max(1, _BLOCK_PX // cell) * cell
    for y in range(0, height, step):
        for x in range(0, width, step):
            alive()
            block = slide.read(level, x, y, min(step, width - x), min(step, height - y), reduction)
            small = np.asarray(Image.fromarray(block).reduce(cell))  # cells over the edge: mean of what is there
            out[y // cell : y // cell + len(small), x // cell : x // cell + small.shape[1]] = small
    return Thumbnail(out, cell * reduction * slide.downsamples[level])
