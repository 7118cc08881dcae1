"""The size of what is dark in a patch, nuclei in H&E: a ruler that does not believe the recorded scale.

Green is smoothed, so that the scanner's sharpness does not count, and what is darker than the median by a standard
deviation is cut into connected blobs. The size is the root of their mean area, weighted by area; blobs of many cells
that run into each other are left out.
"""

import numpy as np
from scipy import ndimage

from tiling.slides.slide import Pixels

_SMOOTH_PX = 2.0
_LEAST_PX = 10  # area of a blob that counts
_MOST = 5  # part of the patch's side: larger ones are cells that run into each other


def cell_size_px(patch: Pixels) -> float:
    """In pixels of a patch (P, P, 3) uint8; NaN where nothing stands out."""
    green = ndimage.gaussian_filter(patch[..., 1].astype(np.float32), _SMOOTH_PX)
    labels, count = ndimage.label(green < np.median(green) - green.std())
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[(areas > _LEAST_PX) & (areas < green.size / _MOST**2)]
    return float(np.sqrt((areas.astype(np.float64) ** 2).sum() / areas.sum())) if len(areas) and count else np.nan
