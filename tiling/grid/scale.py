"""Scale and patch grid: which level is read, what a patch covers in level-0 pixels, where patches lie.

Scale is µm per pixel. A level is read as it is, or as the mean of 2 × 2, 4 × 4 or 8 × 8 of its pixels. What comes
within 2 % of the target is taken so; otherwise the next finer is resampled by area averaging. Nothing is upsampled.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tiling.jobs.errors import SlideError
from tiling.slides.slide import MPP_MAX, MPP_MIN, REDUCTIONS, Slide

TOLERANCE = 0.02
_REMEDY = "give the true value in the column `mpp` of a slide table, or take level-0 pixels with --mpp native"


@dataclass(frozen=True)
class Scale:
    """How a slide's patches are cut."""

    mpp_l0: float  # µm per level-0 pixel, mean of x and y; NaN if unknown (--mpp native only)
    mpp_source: str
    mpp: float  # µm per patch pixel as obtained; NaN if unknown
    level: int  # the level that is read
    reduction: int  # and by how much it is reduced in reading, of tiling.slides.slide.REDUCTIONS
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
            f"{slide.path}: {mpp_x:.4g} × {mpp_y:.4g} µm per pixel by its {slide.mpp_source}, "
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
