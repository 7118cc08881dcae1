"""The two ends of the scale on which a cohort's distance from ImageNet is read: photographs and noise.

The photographs are the colour photographs of everyday things that scikit-image and scikit-learn bring along; they are
cut as ImageNet's are for a network's evaluation, the short side 256 px and crops of 224 px.
"""

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

from tiling.slides.slide import Pixels

_SHORT_PX, _CROP_PX, _CROPS = 256, 224, 6


def photographs() -> Pixels:
    """(n, 224, 224, 3) uint8 RGB of seven photographs, always the same."""
    images = [data.astronaut(), data.cat(), data.coffee(), data.rocket(), data.stereo_motorcycle()[0]]
    rng = np.random.default_rng(0)
    crops: list[Pixels] = []
    for pixels in [*images, *load_sample_images().images]:
        image = Image.fromarray(np.asarray(pixels)).convert("RGB")
        scale = _SHORT_PX / min(image.size)
        small = np.asarray(
            image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        )
        for _ in range(_CROPS):
            y, x = (int(rng.integers(0, size - _CROP_PX + 1)) for size in small.shape[:2])
            crops.append(small[y : y + _CROP_PX, x : x + _CROP_PX])
    return np.stack(crops)


def noise() -> Pixels:
    """(n, 224, 224, 3) uint8 RGB, each value drawn by itself."""
    return np.random.default_rng(0).integers(0, 256, (8, _CROP_PX, _CROP_PX, 3), dtype=np.uint8)
