"""Patch scores over the slide as a picture: tissue left, map right, colour bar, scale bar in µm, title."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mil.maps.drawn import Drawn
from mil.maps.grid import COLOURS, ColourScale, colour_scale, render, score_grid
from mil.maps.pictures import read_figure, write_figure
from mil.maps.scores import PatchScores, title
from tiling.tissue.polygons import read_polygons

ENDING = ".png"
HELP = "slide and map side by side, for reading and print"
_LONGEST_SIDE_PX = 1000
_LONGEST_SIDE_INCH = 6.5
_DPI = 150
_TIPS = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}  # of the bar


def write(path: Path, drawn: Drawn) -> None:
    write_figure(path, _figure(drawn), _DPI, drawn.provenance)


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    return read_figure(path)


def _figure(drawn: Drawn) -> Figure:
    slide, scores, thumbnail = drawn.slide, drawn.scores, drawn.thumbnail(_LONGEST_SIDE_PX)
    height, width = thumbnail.pixels.shape[:2]
    scale = colour_scale(scores)
    grid = score_grid(slide.coords, scores.values, slide.patch_size_l0, (height, width), thumbnail.downsample)
    inch = _LONGEST_SIDE_INCH / max(height, width)
    figure = Figure(figsize=(max(2 * width * inch + 1.4, 6.0), height * inch + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    rings = _outlines(drawn.annotation, thumbnail.downsample)
    for axes in (left, right):
        axes.imshow(thumbnail.pixels, interpolation="none")
        axes.set_axis_off()
        for ring in rings:
            axes.plot(*ring.T, color="#00a651", linewidth=1.4)
    right.imshow(render(grid, scale, drawn.opacity), interpolation="none")
    _colour_bar(figure, scale, scores)
    _scale_bar(left, slide.mpp_l0 * thumbnail.downsample, width, height)
    figure.suptitle(title(slide), fontsize=11, parse_math=False)  # names may hold dollar signs
    for axes, name in ((left, "slide"), (right, scores.kind)):
        axes.set_title(name + (", annotation in green" if rings else ""), fontsize=9)
    return figure


def _outlines(annotation: Path | None, downsample: float) -> list[NDArray[np.float64]]:
    """Closed rings (V + 1, 2) in the thumbnail's pixels, whose centres are whole numbers."""
    rings = [ring / downsample for polygon in read_polygons(annotation) for ring in polygon] if annotation else []
    return [np.vstack([ring, ring[:1]]) - 0.5 for ring in rings]


def _colour_bar(figure: Figure, scale: ColourScale, scores: PatchScores) -> None:
    bar = figure.colorbar(
        ScalarMappable(scale.norm(), COLOURS),
        ax=figure.axes,
        shrink=0.8,
        pad=0.01,
        format="%g" if scale.logarithmic else None,
        extend=_TIPS[scale.passed_by(scores.values)],
    )
    bar.set_label(scores.meaning, parse_math=False)
    if scale.logarithmic:
        ticks = np.geomspace(scale.low, scale.high, 5) if scale.high > 1.05 * scale.low else np.ones(1)
        bar.set_ticks([t for t in (float(f"{tick:.2g}") for tick in ticks) if scale.low <= t <= scale.high])
        bar.minorticks_off()


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
