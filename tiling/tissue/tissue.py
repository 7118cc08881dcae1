"""Where tissue is on a thumbnail of about 8 µm per pixel, and what is pen, dark border or empty glass.

Colours are compared with the glass of the same slide, never with white. Nothing of ours is learned, nothing random.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, label, maximum_filter, minimum_filter
from skimage.filters import rank, threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import disk, remove_small_holes, remove_small_objects

from tiling.slides.slide import Colour
from tiling.tissue.glass import areas_touching, find_background
from tiling.tissue.methods import installed_mask
from tiling.tissue.pen import find_pen
from tiling.tissue.thumbnail import TARGET_MPP, Thumbnail, mask_downsample, read_thumbnail

__all__ = ["Thumbnail", "TissueMap", "map_tissue", "mask_downsample", "read_thumbnail"]

# Otsu splits any histogram in two. Glass is below 0.04 in colour and stained tissue above 0.12 on the slides at
# hand, so the threshold is held there: a slide that is all tissue (or all glass) is not cut in half.
_COLOUR_MIN, _COLOUR_MAX = 0.04, 0.12
_ENTROPY_MIN, _ENTROPY_MAX = 0.8, 1.6  # bits; likewise
_ENTROPY_STEP = 0.04  # optical density; wider than the noise of glass, so that empty glass has no entropy
_CLEAR = 0.15  # optical density in green of what may still be called empty glass
_BLACK, _GREY = 50, 12  # brightest channel, and spread of the channels, of black dirt
_LINE_WIDTH_UM, _LINE_LENGTH_UM, _LINE_RATIO = 80.0, 1000.0, 20
_SPECK_UM2 = 100.0**2  # smaller pieces are dust
_HOLE_UM2 = 150.0**2  # smaller holes belong to the tissue: fat cells, vessels


@dataclass(frozen=True)
class TissueMap:
    """What each thumbnail pixel shows, each (H, W) bool, and the colour of the glass."""

    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    dark: NDArray[np.bool_]  # black borders, shadows
    white: NDArray[np.bool_]  # looks like empty glass, or is padding
    glass: Colour = (255, 255, 255)  # its colour on this slide


def map_tissue(
    thumbnail: Thumbnail, method: str, mpp_l0: float, user_mask: NDArray[np.bool_] | None = None
) -> TissueMap:
    """Tissue by `method`, and what is pen, dark and white whatever the method.

    method: `otsu` (colour), `entropy` (texture), `all` (everything is tissue), or one that an installed package brings
    (tiling.tissue.methods).
    user_mask: (H, W) tissue as the user drew it; replaces the method's.
    Ours expect H&E or DAB with haematoxylin: blue or green stains (Alcian blue, trichrome) look like ink to `pen`.
    """
    mpp = TARGET_MPP if math.isnan(mpp_l0) else mpp_l0 * thumbnail.downsample
    background = find_background(thumbnail.pixels)
    pen = find_pen(background.density, background.padding | background.dark, mpp)
    unseen, covered = background.padding | background.dark | pen, background.dark | pen
    colour = _colour(thumbnail.pixels, background.density)
    by_colour = _clean(_otsu_tissue(colour, unseen) & ~unseen, covered, mpp)
    clear = (background.density[1] < _CLEAR) | background.padding
    white = clear & ~by_colour & ~covered
    if user_mask is not None:
        tissue = user_mask
    elif method == "all":
        tissue = np.ones_like(pen)
    elif method == "entropy":
        tissue = _clean(_entropy_tissue(background.density, colour, unseen) & ~unseen, covered, mpp)
    elif method == "otsu":
        tissue = by_colour
    else:
        tissue = installed_mask(method, thumbnail.pixels, mpp_l0 * thumbnail.downsample)
    return TissueMap(tissue, pen, background.dark, white, background.glass)


def _colour(pixels: NDArray[np.uint8], density: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) spread of the density over the channels: a saturation in which glass and grey are 0."""
    spread = np.asarray(density.max(0) - density.min(0))
    red, green, blue = (pixels[..., i] for i in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread[(high <= _BLACK) & (high - low <= _GREY)] = 0
    return spread


def _otsu_tissue(colour: NDArray[np.float32], unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) what is above the threshold, and what is above half of it and touches that: fat, pale stroma."""
    threshold = _otsu(colour[~unseen], _COLOUR_MIN, _COLOUR_MAX)
    return areas_touching(colour > max(_COLOUR_MIN, threshold / 2), colour > threshold)


def _otsu(values: NDArray[np.float32], low: float, high: float) -> float:
    """Threshold of Otsu (1979), held between `low` and `high`."""
    if len(values) == 0:
        return high
    return float(np.clip(threshold_otsu(values), low, high))


def _entropy_tissue(
    density: NDArray[np.float32], colour: NDArray[np.float32], unseen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(H, W) local Shannon entropy of the mean density over about 100 µm, thresholded by Otsu.

    After Song et al. 2023 (EntropyMasker, Sci Rep 13), with density relative to glass in place of grey levels and
    steps wider than the noise of glass. Grey texture (dust, coverslip edges, bubbles) is left out. Half resolution.
    """
    steps = np.minimum(np.rint(density.mean(0) / _ENTROPY_STEP), 63).astype(np.uint8)
    steps[unseen] = 0
    half = Image.fromarray(steps).resize(
        (max(1, steps.shape[1] // 2), max(1, steps.shape[0] // 2)), Image.Resampling.NEAREST
    )
    entropy = rank.entropy(np.array(half), disk(3)).astype(np.float32)
    entropy = np.asarray(Image.fromarray(entropy).resize(steps.shape[::-1], Image.Resampling.BILINEAR))
    threshold = _otsu(entropy[~unseen], _ENTROPY_MIN, _ENTROPY_MAX)
    return np.asarray((entropy > threshold) & (colour > _COLOUR_MIN))


def _clean(mask: NDArray[np.bool_], covered: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Without straight lines and specks, small holes filled where no pen or border covers them."""
    mask = remove_small_objects(mask & ~_straight_lines(mask, mpp), max_size=round(_SPECK_UM2 / mpp**2))
    if not mask.any():  # else all of a picture smaller than a hole would be one
        return mask
    return np.asarray(remove_small_holes(mask, max_size=round(_HOLE_UM2 / mpp**2)) & ~covered)


def _straight_lines(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """(H, W) edges of coverslips: at most 80 µm wide, at least 1 mm long, straighter than tissue grows."""
    side, length = max(3, round(_LINE_WIDTH_UM / mpp)), _LINE_LENGTH_UM / mpp
    thick = maximum_filter(minimum_filter(mask, side), side)
    thin, _ = label(mask & ~thick, np.ones((3, 3)))
    lines = np.zeros_like(mask)
    for number, place in enumerate(find_objects(thin), start=1):
        if math.hypot(*(part.stop - part.start for part in place)) < length:
            continue
        (shape,) = regionprops((thin[place] == number).astype(np.uint8))
        if shape.axis_major_length >= max(length, _LINE_RATIO * shape.axis_minor_length):
            lines[place] |= thin[place] == number
    return lines
