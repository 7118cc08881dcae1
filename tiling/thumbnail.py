"""A slide as one small picture of about 8 µm per pixel."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tiling.slide import Pixels, Slide

TARGET_MPP = 8.0
UNSCALED_SIDE_PX = 1024  # longest side of the thumbnail where the scale is unknown
_BLOCK_PX = 2048


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
    """The slide at about `wanted` downsample by area averaging, read in blocks so that memory stays small."""
    level = max((i for i, d in enumerate(slide.downsamples) if d <= wanted * 1.01), default=0)
    factor = max(1, round(wanted / slide.downsamples[level]))
    width, height = slide.level_sizes[level]
    out = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
    step = max(1, _BLOCK_PX // factor) * factor
    for y in range(0, height, step):
        for x in range(0, width, step):
            block = slide.read(level, x, y, min(step, width - x), min(step, height - y))
            small = np.asarray(Image.fromarray(block).reduce(factor))  # cells over the edge: mean of what is there
            out[y // factor : y // factor + len(small), x // factor : x // factor + small.shape[1]] = small
    return Thumbnail(out, factor * slide.downsamples[level])
