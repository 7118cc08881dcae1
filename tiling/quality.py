"""Per-patch quality scores."""

import numpy as np
from scipy.ndimage import laplace

from tiling.slide import Pixels

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def sharpness(patch: Pixels) -> float:
    """Variance of the Laplacian of the patch's (P, P, 3) brightness, 0..255 units (Pech-Pacheco et al. 2000)."""
    return float(laplace(patch @ _LUMA).var())
