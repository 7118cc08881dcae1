"""Per-patch quality scores."""

import numpy as np
from PIL import Image

from tiling.slide import Pixels


def sharpness(patch: Pixels) -> float:
    """Variance of the Laplacian of the patch's (P, P, 3) luma, 0..255 units (Pech-Pacheco et al. 2000)."""
    luma = np.asarray(Image.fromarray(patch).convert("L"), np.int16)
    inner = 4 * luma[1:-1, 1:-1]
    laplacian = inner - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]  # within ±1020
    return float(laplacian.var(dtype=np.float64))
