"""Where patches lie on a slide, and how much of each a mask covers."""

import math

import numpy as np
from numpy.typing import NDArray

from tiling.grid.scale import Scale

UNBOUNDED = (math.inf, math.inf)


def patch_grid(width_l0: int, height_l0: int, scale: Scale) -> NDArray[np.int64]:
    """Corners (N, 2) int64 (x, y) of all patches of the grid at (0, 0) that lie wholly inside the slide, row by row."""
    xs = np.arange(0, width_l0 - scale.patch_size_l0 + 1, scale.stride_l0, dtype=np.int64)
    ys = np.arange(0, height_l0 - scale.patch_size_l0 + 1, scale.stride_l0, dtype=np.int64)
    return corners(xs, ys)


def corners(xs: NDArray[np.int64], ys: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pairs (N, 2) of (x, y), row by row."""
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)


def padded_fraction(coords_l0: NDArray[np.int64], size_l0: int, slide_l0: tuple[int, int]) -> NDArray[np.float32]:
    """Share (N,) of each square patch that sticks out over the slide of `slide_l0` (width, height)."""
    seen = np.minimum(coords_l0 + size_l0, slide_l0) - np.maximum(coords_l0, 0)  # N, 2
    return np.asarray(1 - seen.clip(0).prod(1) / size_l0**2, np.float32)


def covered_fraction(
    mask: NDArray[np.bool_],
    downsample: float,
    coords_l0: NDArray[np.int64],
    size_l0: int,
    slide_l0: tuple[float, float] = UNBOUNDED,
) -> NDArray[np.float32]:
    """Exact share (N,) of each square patch that the mask (H, W) covers, by its integral image.

    A mask cell is `downsample` level-0 pixels wide; what lies beyond the slide of `slide_l0` (width, height) does not
    count, though the mask's last cells reach there. The integral of a piecewise constant mask is piecewise bilinear,
    so interpolating the integral image at fractional corners is exact.
    """
    integral = integral_image(mask)
    x0, y0 = (np.minimum(coords_l0, slide_l0) / downsample).T
    x1, y1 = (np.minimum(coords_l0 + size_l0, slide_l0) / downsample).T

    def at(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, mask.shape[1]), np.clip(y, 0, mask.shape[0])
        i, j = np.minimum(y.astype(int), mask.shape[0] - 1), np.minimum(x.astype(int), mask.shape[1] - 1)
        v, u = y - i, x - j
        top = integral[i, j] * (1 - u) + integral[i, j + 1] * u
        bottom = integral[i + 1, j] * (1 - u) + integral[i + 1, j + 1] * u
        return np.asarray(top * (1 - v) + bottom * v)

    covered = at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)
    return np.clip(covered / (size_l0 / downsample) ** 2, 0, 1).astype(np.float32)


def covered_share(
    mask: NDArray[np.bool_],
    downsample: float,
    coords_l0: NDArray[np.int64],
    size_l0: int,
    slide_l0: tuple[float, float] = UNBOUNDED,
) -> float:
    """Exact share of what the mask (H, W) marks that lies in any of the square patches; NaN where it marks nothing.

    Like covered_fraction, on the cells between all left, right, upper and lower edges of patches: each cell lies in a
    patch as a whole or not at all, so that overlaps count once.
    """
    integral = integral_image(mask)
    whole = _between(integral, *(np.minimum([0, math.inf], n) / downsample for n in slide_l0))
    if not whole.item():
        return math.nan
    edges, first, last = zip(*(_edges(starts, size_l0) for starts in coords_l0.T), strict=True)
    x, y = (np.minimum(of_axis, n) / downsample for of_axis, n in zip(edges, slide_l0, strict=True))
    depth = np.zeros((len(y), len(x)), np.int32)  # of the patches over each cell
    for columns, rows, step in ((first, first, 1), (first, last, -1), (last, first, -1), (last, last, 1)):
        np.add.at(depth, (rows[1], columns[0]), step)
    inside = depth.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return float(_between(integral, x, y)[inside].sum() / whole.item())


def _edges(starts: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Along one axis: all edges of patches once, ascending, and where the first and the last of each patch are."""
    edges = np.unique(np.concatenate([starts, starts + size]))
    return edges, np.searchsorted(edges, starts), np.searchsorted(edges, starts + size)


def _between(integral: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Y - 1, X - 1) area in cells of what is marked between neighbouring xs (X,) and ys (Y,), in cells."""
    at_crossings = interpolated(interpolated(integral, ys).T, xs).T
    return np.asarray(np.diff(np.diff(at_crossings, axis=0), axis=1))


def integral_image(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H + 1, W + 1) how many cells of `mask` (H, W) are marked above and left of each crossing."""
    return np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def interpolated(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, W) rows of `values` (H, W) at fractional places (n,), those beyond its ends taken as the end."""
    at = np.clip(at, 0, len(values) - 1)
    row = np.minimum(at.astype(np.int64), len(values) - 2)
    part = (at - row)[:, None]
    return np.asarray(values[row] * (1 - part) + values[row + 1] * part)
