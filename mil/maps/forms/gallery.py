"""The patches with the highest and the lowest scores of a slide, as pictures with their scores."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mil.maps.drawn import Drawn
from mil.maps.extremes import SHOWN, extremes, patch_picture
from mil.maps.grid import said
from mil.maps.pictures import read_figure, write_figure
from mil.maps.scores import title

ENDING = ".gallery.png"
HELP = "the highest and the lowest patches as pictures"
_DPI = 120


def write(path: Path, drawn: Drawn) -> None:
    """Two rows, highest and lowest, as a PNG."""
    write_figure(path, _figure(drawn), _DPI, drawn.provenance)


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    return read_figure(path)


def _figure(drawn: Drawn) -> Figure:
    slide, scores, chosen = drawn.slide, drawn.scores, extremes(drawn.scores)
    figure = Figure(figsize=(SHOWN * 1.35, 4.0), layout="constrained")
    grid = figure.subplots(2, SHOWN, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, indices) in zip(grid, (("highest", chosen.top), ("lowest", chosen.bottom)), strict=True):
        row[0].set_title(name, loc="left", fontsize=9, fontweight="bold")
        for axes, index in zip(row, indices.tolist(), strict=False):
            axes.imshow(patch_picture(drawn.source, slide, index))
            x, y = slide.coords[index].tolist()
            below = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.03, said(scores.values[index]), fontsize=8, **below)
            axes.text(0.5, -0.17, f"x {x:,}  y {y:,}", fontsize=5.5, **below)
    side = "" if math.isnan(slide.mpp_l0) else f"   a patch is {slide.patch_size_l0 * slide.mpp_l0:.0f} µm wide"
    figure.suptitle(f"{title(slide)}\n{scores.meaning}{side}", fontsize=9, parse_math=False)  # names may hold $
    return figure
