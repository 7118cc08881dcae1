"""Patch scores over the slide as a picture: tissue left, map right, colour bar, scale bar in µm, title."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mil.maps.grid import COLOURS, colour_scale, render, score_grid
from mil.maps.scores import PatchScores, default_class
from mil.run.attention import SlideAttention
from tiling.jobs.atomic import atomic_file
from tiling.slides.slide import Pixels, Slide
from tiling.tissue.polygons import read_polygons
from tiling.tissue.thumbnail import read_thumbnail

_LONGEST_SIDE_PX = 1000
_LONGEST_SIDE_INCH = 6.5
_DPI = 150


def write_png(
    path: Path,
    slide: SlideAttention,
    patches: PatchScores,
    source: Slide,
    annotation: Path | None,
    opacity: float,
    provenance: dict[str, Any],
) -> None:
    """Draw `patches` over a thumbnail read from `source`. annotation: GeoJSON whose outlines are drawn too."""
    thumbnail = read_thumbnail(source, max(1.0, max(slide.width_l0, slide.height_l0) / _LONGEST_SIDE_PX))
    downsample = thumbnail.downsample
    height, width = thumbnail.pixels.shape[:2]
    grid = score_grid(slide.coords, patches.values, slide.patch_size_l0, (height, width), downsample)
    rings = [ring / downsample for polygon in read_polygons(annotation) for ring in polygon] if annotation else []
    figure = _figure(slide, patches, thumbnail.pixels, grid, downsample, rings, opacity)
    text = {"Software": None, "slidemil": json.dumps(provenance, sort_keys=True)}
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata=text, pil_kwargs={"compress_level": 3})


def _figure(
    slide: SlideAttention,
    patches: PatchScores,
    pixels: Pixels,
    grid: NDArray[np.float64],
    downsample: float,
    rings: list[NDArray[np.float64]],
    opacity: float,
) -> Figure:
    height, width = pixels.shape[:2]
    inch = _LONGEST_SIDE_INCH / max(height, width)
    figure = Figure(figsize=(max(2 * width * inch + 1.4, 6.0), height * inch + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes in (left, right):
        axes.imshow(pixels, interpolation="none")
        axes.set_axis_off()
        for ring in rings:
            closed = np.vstack([ring, ring[:1]]) - 0.5
            axes.plot(*closed.T, color="#00a651", linewidth=1.4)
    scale = colour_scale(patches)
    right.imshow(render(grid, scale, opacity), interpolation="none")
    bar = figure.colorbar(
        ScalarMappable(scale.norm(), COLOURS),
        ax=(left, right),
        shrink=0.8,
        pad=0.01,
        format="%g" if scale.logarithmic else None,
    )
    bar.set_label(patches.meaning)
    if scale.logarithmic:
        ticks = np.geomspace(scale.low, scale.high, 5) if scale.high > 1.05 * scale.low else np.ones(1)
        bar.set_ticks([t for t in (float(f"{tick:.2g}") for tick in ticks) if scale.low <= t <= scale.high])
        bar.minorticks_off()
    _scale_bar(left, slide.mpp_l0 * downsample, width, height)
    figure.suptitle(title(slide), fontsize=11)
    left.set_title("slide" + (", annotation in green" if rings else ""), fontsize=9)
    right.set_title(patches.kind + (", annotation in green" if rings else ""), fontsize=9)
    return figure


def title(slide: SlideAttention) -> str:
    """What the models said of the slide, beside its label."""
    shown = default_class(slide)
    probability = f"probability of {shown}: {slide.probabilities[slide.classes.index(shown)]:.2f}"
    label = f"   label: {slide.label}" if slide.label else ""
    return f"{slide.slide_id}   {probability}{label}   {len(slide.attention):,} patches"


def _scale_bar(axes: Axes, mpp: float, width: int, height: int) -> None:
    """A bar of a round length near a fifth of the picture's width; in slide pixels where there is no scale."""
    unit = "px of the picture" if math.isnan(mpp) else "µm"
    per_px = 1.0 if math.isnan(mpp) else mpp
    wanted = width * per_px / 5
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    said = f"{length / 1000:g} mm" if unit == "µm" and length >= 1000 else f"{length:g} {unit}"
    x, y, thick = 0.04 * width, 0.96 * height, max(2.0, 0.008 * height)
    axes.add_patch(Rectangle((x, y - thick), length / per_px, thick, color="black"))
    axes.text(
        x + length / per_px / 2,
        y - 2 * thick,
        said,
        ha="center",
        va="bottom",
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
    )
