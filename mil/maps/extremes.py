"""The patches with the highest and the lowest scores of a slide, and how they look."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention
from tiling.slides.slide import Pixels, Slide

SHOWN = 8
_PATCH_PX = 160


@dataclass(frozen=True)
class Extremes:
    """Positions of the patches to show: `top` from the highest score down, `bottom` from the lowest up."""

    top: NDArray[np.int64]
    bottom: NDArray[np.int64]


def extremes(scores: PatchScores, count: int = SHOWN) -> Extremes:
    """No patch is in both; equal scores in the order of the file."""
    order = np.argsort(-scores.values, kind="stable")
    top = order[:count]
    return Extremes(top, order[::-1][: min(count, len(order) - len(top))])


def patch_picture(source: Slide, slide: SlideAttention, index: int) -> Pixels:
    """Patch `index` as the slide shows it, (_PATCH_PX, _PATCH_PX, 3)."""
    wanted = max(1.0, slide.patch_size_l0 / _PATCH_PX)
    level = max(i for i, d in enumerate(source.downsamples) if d <= wanted * 1.01 or i == 0)
    downsample = source.downsamples[level]
    x, y = (slide.coords[index] / downsample).round().astype(int).tolist()
    side = max(1, round(slide.patch_size_l0 / downsample))
    whole = Image.fromarray(source.read(level, x, y, side, side))
    return np.asarray(whole.resize((_PATCH_PX, _PATCH_PX), Image.Resampling.LANCZOS))
