"""Where patches lie on a slide, and how much of each a mask covers."""

import numpy as np
from numpy.typing import NDArray

from tiling.grid.scale import Scale


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
