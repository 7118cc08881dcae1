"""Tissue mask on a thumbnail of about 8 µm per pixel."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from tiling.errors import SlideError
from tiling.slide import Pixels, Slide

TARGET_MPP = 8.0
UNSCALED_SIDE_PX = 1024  # longest side of the thumbnail where the scale is unknown
_BLOCK_PX = 2048
_LARGEST_PX = 1 << 26  # of a thumbnail: 6.5 cm × 6.5 cm of glass
# Otsu splits any histogram in two. Glass is below 0.04 in saturation and stained tissue above 0.12 on the
# slides at hand, so the threshold is held there: a slide that is all tissue (or all glass) is not cut in half.
_SATURATION_MIN, _SATURATION_MAX = 0.04, 0.12
_DARK = 50  # brightest channel of black borders and of the shadow at the edge of the glass
_SMALLEST_UM2 = 100.0**2  # smaller specks are dust, smaller holes belong to the tissue
_SMALLEST_PX = 64  # the same where the scale is unknown


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
    if width * height > _LARGEST_PX * factor**2:
        raise SlideError(f"{slide.path}: says it has {width} × {height} px at level {level}; is the file damaged?")
    out = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
    step = max(1, _BLOCK_PX // factor) * factor
    for y in range(0, height, step):
        for x in range(0, width, step):
            block = slide.read(level, x, y, min(step, width - x), min(step, height - y))
            small = np.asarray(Image.fromarray(block).reduce(factor))  # cells over the edge: mean of what is there
            out[y // factor : y // factor + len(small), x // factor : x // factor + small.shape[1]] = small
    return Thumbnail(out, factor * slide.downsamples[level])


@dataclass(frozen=True)
class TissueMap:
    """What each thumbnail pixel shows, each (H, W) bool."""

    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    dark: NDArray[np.bool_]  # black borders, shadows
    white: NDArray[np.bool_]  # looks like empty glass


def map_tissue(thumbnail: Thumbnail, method: str, mpp_l0: float) -> TissueMap:
    """Tissue by `method`, and what is pen, dark and white whatever the method."""
    pixels = thumbnail.pixels
    dark = pixels.max(2) <= _DARK
    tissue = _otsu_tissue(thumbnail, mpp_l0)
    white = ~tissue & ~dark
    pen = np.zeros_like(tissue)
    return TissueMap(np.ones_like(tissue) if method == "all" else tissue, pen, dark, white)


def _otsu_tissue(thumbnail: Thumbnail, mpp_l0: float) -> NDArray[np.bool_]:
    """Otsu (1979) on HSV saturation, then specks and holes removed."""
    pixels = thumbnail.pixels
    saturation = _saturation(pixels)
    threshold = np.clip(threshold_otsu(saturation), _SATURATION_MIN, _SATURATION_MAX)
    mask = saturation > threshold
    mpp = mpp_l0 * thumbnail.downsample
    smallest = _SMALLEST_PX if math.isnan(mpp) else round(_SMALLEST_UM2 / mpp**2)
    mask = remove_small_objects(mask, max_size=smallest)
    return np.asarray(remove_small_holes(mask, max_size=smallest))


def _saturation(pixels: Pixels) -> NDArray[np.float32]:
    """(H, W) HSV saturation 0..1, smoothed by a 3 × 3 median; 0 where the pixel is almost black."""
    high, low = pixels.max(2).astype(np.float32), pixels.min(2).astype(np.float32)
    saturation = np.where(high > _DARK, (high - low) / np.maximum(high, 1), 0)
    return np.asarray(median_filter(saturation, size=3), np.float32)
