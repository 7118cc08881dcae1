"""Tissue masks on thumbnails with drawn artefacts: pixel precision and recall, ours against plain thresholds.

The scenes are phantoms with drawn pens, borders and dirt (slide_artefacts.py): they rank methods by what they
confuse, and say nothing about how well a method does on a laboratory's slides. A cell is precision/recall/F1 in
per cent; where a scene has no tissue, the share of it that is wrongly called tissue.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray, rgb2hsv
from skimage.filters import threshold_li, threshold_otsu, threshold_triangle, threshold_yen

from tiling.tissue.thumbnail import Thumbnail
from tiling.tissue.tissue import map_tissue

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from slide_artefacts import MPP, SCENES

Mask = NDArray[np.bool_]


def below(threshold: Callable[[NDArray[np.float64]], float]) -> Callable[[NDArray[np.uint8]], Mask]:
    def darker(pixels: NDArray[np.uint8]) -> Mask:
        grey = rgb2gray(pixels)
        return np.asarray(grey < threshold(grey))

    return darker


def saturated(pixels: NDArray[np.uint8]) -> Mask:
    saturation = rgb2hsv(pixels)[..., 1]
    return np.asarray(saturation > threshold_otsu(saturation))


OTHERS = {
    "Otsu grey": below(threshold_otsu),
    "Otsu satur.": saturated,
    "triangle": below(threshold_triangle),
    "Li": below(threshold_li),
    "Yen": below(threshold_yen),
}


def agreement(found: Mask, truth: Mask) -> str:
    if not truth.any():
        return f"{found.mean():.0%} wrong" if found.any() else "none"
    both = (found & truth).sum()
    precision, recall, f1 = both / max(found.sum(), 1), both / truth.sum(), 2 * both / (found.sum() + truth.sum())
    return "/".join(f"{100 * value:.0f}" for value in (precision, recall, f1))


def main() -> None:
    names = ["otsu", "entropy", *OTHERS, "pen (ours)"]
    print(" | ".join([f"{'scene':<22}", *(f"{name:<11}" for name in names)]))
    for name, make in SCENES.items():
        scene = make()
        thumbnail = Thumbnail(scene.pixels, MPP / 0.25)
        ours = [map_tissue(thumbnail, method, 0.25) for method in ("otsu", "entropy")]
        masks = [m.tissue for m in ours] + [method(scene.pixels) for method in OTHERS.values()]
        cells = [agreement(mask, scene.tissue) for mask in masks] + [agreement(ours[0].pen, scene.pen)]
        print(" | ".join([f"{name:<22}", *(f"{cell:<11}" for cell in cells)]))


if __name__ == "__main__":
    main()
