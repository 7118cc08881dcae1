"""Per-patch quality scores."""

import numpy as np
from PIL import Image

from tiling.slide import Pixels


def sharpness(patch: Pixels) -> float:
    """Variance of the Laplacian of the patch's (P, P, 3) luma, 0..255 units (Pech-Pacheco et al. 2000)."""
    luma = np.asarray(Image.fromarray(patch).convert("L")).astype(np.int16)
    laplacian = luma[1:-1, 1:-1] << 2  # within ±1020
    for neighbour in (luma[:-2, 1:-1], luma[2:, 1:-1], luma[1:-1, :-2], luma[1:-1, 2:]):
        laplacian -= neighbour
    values = laplacian.ravel().astype(np.float32)
    return float(values @ values / len(values) - values.mean(dtype=np.float64) ** 2)
