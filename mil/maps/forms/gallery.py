"""The patches with the highest and the lowest scores of a slide, as pictures with their scores."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mil.maps.forms.png import title
from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention
from tiling.jobs.atomic import atomic_file
from tiling.slides.slide import Pixels, Slide

SHOWN = 8
_PATCH_PX = 160
_DPI = 120


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


def patch_picture(source: Slide, slide: SlideAttention, index: int) -> Image.Image:
    """Patch `index` as the slide shows it, _PATCH_PX wide."""
    wanted = max(1.0, slide.patch_size_l0 / _PATCH_PX)
    level = max(i for i, d in enumerate(source.downsamples) if d <= wanted * 1.01 or i == 0)
    downsample = source.downsamples[level]
    x, y = (slide.coords[index] / downsample).round().astype(int).tolist()
    side = max(1, round(slide.patch_size_l0 / downsample))
    pixels: Pixels = source.read(level, x, y, side, side)
    return Image.fromarray(pixels).resize((_PATCH_PX, _PATCH_PX), Image.Resampling.LANCZOS)


def write_gallery(
    path: Path, slide: SlideAttention, scores: PatchScores, source: Slide, provenance: dict[str, Any]
) -> None:
    """Two rows, highest and lowest, as a PNG."""
    chosen = extremes(scores)
    figure = Figure(figsize=(SHOWN * 1.35, 4.0), layout="constrained")
    grid = figure.subplots(2, SHOWN, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, indices) in zip(grid, (("highest", chosen.top), ("lowest", chosen.bottom)), strict=True):
        row[0].set_title(name, loc="left", fontsize=9, fontweight="bold")
        for axes, index in zip(row, indices.tolist(), strict=False):
            axes.imshow(patch_picture(source, slide, index))
            x, y = slide.coords[index].tolist()
            axes.text(
                0.5, -0.03, said(scores.values[index]), transform=axes.transAxes, ha="center", va="top", fontsize=8
            )
            axes.text(0.5, -0.17, f"x {x:,}  y {y:,}", transform=axes.transAxes, ha="center", va="top", fontsize=5.5)
    side = "" if math.isnan(slide.mpp_l0) else f"   a patch is {slide.patch_size_l0 * slide.mpp_l0:.0f} µm wide"
    figure.suptitle(f"{title(slide)}\n{scores.meaning}{side}", fontsize=9)
    text = {"Software": None, "slidemil": json.dumps(provenance, sort_keys=True)}
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata=text, pil_kwargs={"compress_level": 3})


def said(score: float) -> str:
    return f"{score:.3g}" if abs(score) < 1000 else f"{score:,.0f}"
