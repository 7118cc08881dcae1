"""Where a slide's grid of patches begins, so that few patches cover much of its tissue."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.grid.corners import corners, integral_image, interpolated
from tiling.grid.scale import Scale

_OFFSETS = 32  # at most so many are tried along each axis


@dataclass(frozen=True)
class _Trial:
    """One offset; the smallest rank is the best."""

    worth: float
    tissue: float  # in patches kept, in areas of a patch
    patches: int
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]

    @property
    def rank(self) -> tuple[float, float, int]:
        return -round(self.worth, 6), -round(self.tissue, 6), self.patches  # so that rounding errors do not choose


def fitted_grid(
    tissue: NDArray[np.bool_], downsample: float, slide_l0: tuple[int, int], scale: Scale, min_tissue: float
) -> NDArray[np.int64]:
    """Corners (N, 2) int64 (x, y) of all patches of the grid that suits the tissue best, row by row.

    Patches may stick out over each edge of the slide of `slide_l0` (width, height), so corners may be negative.
    tissue: (H, W), a cell is `downsample` level-0 pixels wide. min_tissue: the share from which a patch is kept.

    One offset for the whole slide, that with the largest sum of (share of tissue - min_tissue) over the patches kept:
    a patch is worth its tissue less what any patch must have. Among equals the most tissue decides, then the fewest
    patches, then the smallest y and x. Tried are up to 32 × 32 offsets, evenly spaced, none finer than the mask.
    """
    integral = integral_image(tissue)
    area = (scale.patch_size_l0 / downsample) ** 2
    columns, rows = (_starts(length, scale, downsample) for length in slide_l0)
    best: _Trial | None = None
    for ys in rows:
        bands = np.ascontiguousarray(_strips(integral, ys, scale, downsample, slide_l0[1]).T)  # W + 1, rows
        for xs in columns:
            shares = _strips(bands, xs, scale, downsample, slide_l0[0]) / area  # columns, rows
            kept = shares[shares >= min_tissue]
            trial = _Trial(float((kept - min_tissue).sum()), float(kept.sum()), len(kept), ys, xs)
            if best is None or trial.rank < best.rank:
                best = trial
    assert best is not None
    return corners(best.xs, best.ys)


def grid_through(corner_l0: tuple[int, int], slide_l0: tuple[int, int], scale: Scale) -> NDArray[np.int64]:
    """Corners (N, 2) int64 (x, y) of all patches that touch the slide on the grid of which one corner is known."""
    return corners(*(_on_grid(at, length, scale) for at, length in zip(corner_l0, slide_l0, strict=True)))


def _starts(length_l0: int, scale: Scale, downsample: float) -> list[NDArray[np.int64]]:
    """Along one axis, for each offset: where the patches start that touch the slide.

    Offsets are whole numbers of the pixels that are read, reduced ones too, so that a patch begins with a pixel as it
    does in the grid at (0, 0).
    """
    count = min(_OFFSETS, max(1, round(scale.stride_l0 / downsample)))
    steps = (i * scale.stride_l0 / count / scale.downsample for i in range(count))
    offsets = {round(round(step) * scale.downsample) for step in steps}
    return [_on_grid(offset, length_l0, scale) for offset in sorted(offsets)]


def _on_grid(at_l0: int, length_l0: int, scale: Scale) -> NDArray[np.int64]:
    """Along one axis: where the patches start that touch the slide, if one on their grid starts at `at_l0`."""
    size, stride = scale.patch_size_l0, scale.stride_l0
    return np.arange(at_l0 - (at_l0 + size - 1) // stride * stride, length_l0, stride, dtype=np.int64)


def _strips(
    integral: NDArray[np.float64], starts_l0: NDArray[np.int64], scale: Scale, downsample: float, length_l0: int
) -> NDArray[np.float64]:
    """(n, W): what lies in each strip of a patch's width along the first axis."""
    ends_l0 = np.minimum(starts_l0 + scale.patch_size_l0, length_l0)
    return interpolated(integral, ends_l0 / downsample) - interpolated(integral, starts_l0 / downsample)
