"""Scale and patch grid: which level is read, what a patch covers in level-0 pixels, where patches lie.

Scale is µm per pixel. A level is read as it is, or as the mean of 2 × 2, 4 × 4 or 8 × 8 of its pixels. What comes
within 2 % of the target is taken so; otherwise the next finer is resampled by area averaging. Nothing is upsampled.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from tiling.errors import SlideError
from tiling.manifest import MPP_MAX, MPP_MIN
from tiling.slide import REDUCTIONS, Pixels, Slide

TOLERANCE = 0.02
_REMEDY = "give the true value in the column `mpp` of a slide table, or take level-0 pixels with --mpp native"


@dataclass(frozen=True)
class Scale:
    """How a slide's patches are cut."""

    mpp_l0: float  # µm per level-0 pixel, mean of x and y; NaN if unknown (--mpp native only)
    mpp_source: str
    mpp: float  # µm per patch pixel as obtained; NaN if unknown
    level: int  # the level that is read
    reduction: int  # and by how much it is reduced in reading, of tiling.slide.REDUCTIONS
    downsample: float  # level-0 pixels per pixel so read
    patch_size_px: int
    patch_size_l0: int  # side of a patch in level-0 pixels
    stride_l0: int  # from one patch to the next in level-0 pixels


def choose_scale(
    slide: Slide,
    mpp: float | Literal["native"],
    patch_px: int,
    overlap_px: int,
    mpp_table: float | None = None,
) -> Scale:
    """Scale of `slide` for patches of `patch_px` at `mpp`. Raises SlideError where it cannot be exact.

    mpp_table: µm per level-0 pixel from the slide table; overrides the file.
    """
    if mpp == "native":
        mpp_l0, source = _scale_if_known(slide, mpp_table)
        level, reduction, downsample = 0, 1, 1.0
        patch_size_l0 = patch_px
    else:
        mpp_l0, source = _scale_of_file(slide, mpp_table)
        level, reduction, as_it_is = _choose_level(slide, mpp_l0, mpp)
        downsample = slide.downsamples[level] * reduction
        patch_size_l0 = round(patch_px * (downsample if as_it_is else mpp / mpp_l0))
    return Scale(
        mpp_l0=mpp_l0,
        mpp_source=source,
        mpp=mpp_l0 * patch_size_l0 / patch_px,
        level=level,
        reduction=reduction,
        downsample=downsample,
        patch_size_px=patch_px,
        patch_size_l0=patch_size_l0,
        stride_l0=max(1, round(patch_size_l0 * (patch_px - overlap_px) / patch_px)),
    )


def _scale_if_known(slide: Slide, mpp_table: float | None) -> tuple[float, str]:
    try:
        return _scale_of_file(slide, mpp_table)
    except SlideError:
        return math.nan, "unknown"


def _scale_of_file(slide: Slide, mpp_table: float | None) -> tuple[float, str]:
    if mpp_table is not None:
        return mpp_table, "slide table"
    if slide.mpp is None:
        raise SlideError(f"{slide.path}: the file does not say its scale (µm per pixel); {_REMEDY}")
    mpp_x, mpp_y = slide.mpp
    if not (MPP_MIN <= mpp_x <= MPP_MAX and MPP_MIN <= mpp_y <= MPP_MAX):
        raise SlideError(
            f"{slide.path}: {slide.mpp_source} says {mpp_x:.4g} × {mpp_y:.4g} µm per pixel, "
            f"expected {MPP_MIN} to {MPP_MAX}; {_REMEDY}"
        )
    if abs(mpp_x / mpp_y - 1) > TOLERANCE:
        raise SlideError(
            f"{slide.path}: pixels are not square: {mpp_x:.4g} × {mpp_y:.4g} µm, more than 2 % apart; {_REMEDY}"
        )
    return (mpp_x + mpp_y) / 2, slide.mpp_source


def _choose_level(slide: Slide, mpp_l0: float, mpp: float) -> tuple[int, int, bool]:
    """The level to read, its reduction, and whether that is taken as it is (within 2 % of the target)."""
    pictures = {
        (level, reduction): mpp_l0 * downsample * reduction / mpp  # below 1: finer than the target
        for level, downsample in enumerate(slide.downsamples)
        for reduction in REDUCTIONS
    }
    if pictures[0, 1] > 1 + TOLERANCE:
        raise SlideError(
            f"{slide.path}: its finest level has {mpp_l0:.4g} µm per pixel, --mpp {mpp} asks for finer; "
            f"nothing is upsampled: choose --mpp {mpp_l0:.4g} or more"
        )
    exact = [p for p, ratio in pictures.items() if abs(ratio - 1) <= TOLERANCE]
    if exact:
        return *min(exact, key=lambda p: (p[1], abs(pictures[p] - 1))), True
    # A reduced picture blurs unevenly where it is resampled by less than 2, so the level itself is read there.
    finer = {p: ratio for p, ratio in pictures.items() if ratio < 1 and (p[1] == 1 or ratio <= 0.5)}
    coarsest = max(finer.values())
    alike = [p for p, ratio in finer.items() if ratio >= coarsest * (1 - TOLERANCE)]
    return *min(alike, key=lambda p: p[1]), False  # of two alike, the stored level: less to decode


def patch_grid(width_l0: int, height_l0: int, scale: Scale) -> NDArray[np.int64]:
    """Corners (N, 2) int64 (x, y) of all patches that lie wholly inside the slide, row by row."""
    xs = np.arange(0, width_l0 - scale.patch_size_l0 + 1, scale.stride_l0, dtype=np.int64)
    ys = np.arange(0, height_l0 - scale.patch_size_l0 + 1, scale.stride_l0, dtype=np.int64)
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)


def covered_fraction(
    mask: NDArray[np.bool_], downsample: float, coords_l0: NDArray[np.int64], size_l0: int
) -> NDArray[np.float32]:
    """Exact share (N,) of each square patch that the mask (H, W) covers, by its integral image.

    A mask cell is `downsample` level-0 pixels wide. The integral of a piecewise constant mask is piecewise
    bilinear, so interpolating the integral image at fractional corners is exact.
    """
    integral = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # H+1, W+1
    x0, y0 = (coords_l0 / downsample).T
    x1, y1 = ((coords_l0 + size_l0) / downsample).T

    def at(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, mask.shape[1]), np.clip(y, 0, mask.shape[0])
        i, j = np.minimum(y.astype(int), mask.shape[0] - 1), np.minimum(x.astype(int), mask.shape[1] - 1)
        v, u = y - i, x - j
        top = integral[i, j] * (1 - u) + integral[i, j + 1] * u
        bottom = integral[i + 1, j] * (1 - u) + integral[i + 1, j + 1] * u
        return np.asarray(top * (1 - v) + bottom * v)

    covered = at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)
    return np.clip(covered / (size_l0 / downsample) ** 2, 0, 1).astype(np.float32)


def read_patch(slide: Slide, scale: Scale, x_l0: int, y_l0: int) -> Pixels:
    """One patch (P, P, 3) uint8 RGB whose corner is at level-0 (x, y)."""
    x, y = x_l0 / scale.downsample, y_l0 / scale.downsample  # in pixels as they are read
    size = scale.patch_size_l0 / scale.downsample
    px = scale.patch_size_px
    if abs(size - px) < TOLERANCE * px:
        return slide.read(scale.level, round(x), round(y), px, px, scale.reduction)
    left, top = math.floor(x), math.floor(y)
    side = math.ceil(max(x - left, y - top) + size)
    region = slide.read(scale.level, left, top, side, side, scale.reduction)
    return area_average(region, x - left, y - top, size, px)


def area_average(region: Pixels, x: float, y: float, size: float, out_px: int) -> Pixels:
    """The square of side `size` at (x, y) of `region`, each output pixel the exact mean of what it covers."""
    factor = size / out_px
    if x == y == 0 and factor == int(factor) and region.shape[:2] == (int(size), int(size)):
        return np.asarray(Image.fromarray(region).reduce(int(factor)))
    weights_x = _area_weights(x, size, out_px, region.shape[1])  # P, W
    weights_y = _area_weights(y, size, out_px, region.shape[0])  # P, H
    rows = weights_y @ region.reshape(region.shape[0], -1).astype(np.float32)  # P, W*3
    columns = rows.reshape(out_px, region.shape[1], 3).transpose(1, 0, 2).reshape(region.shape[1], -1)
    out = (weights_x @ columns).reshape(out_px, out_px, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.rint(out).clip(0, 255).astype(np.uint8))


def _area_weights(start: float, size: float, out_px: int, in_px: int) -> sparse.csr_matrix:
    """(out_px, in_px) share of each input pixel in each output pixel; rows sum to 1."""
    edges = start + np.arange(out_px + 1) * (size / out_px)
    first = np.floor(edges[:-1]).astype(int)
    taps = int(np.ceil(size / out_px)) + 1
    columns = first[:, None] + np.arange(taps)  # out_px, taps
    covered = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    weights = np.clip(covered, 0, None) * (columns < in_px)
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(out_px), taps)
    entries = (weights.ravel().astype(np.float32), (rows, np.minimum(columns, in_px - 1).ravel()))
    return sparse.csr_matrix(entries, shape=(out_px, in_px))
