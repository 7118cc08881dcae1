"""Attention over the slide as a picture: tissue left, map right, colour bar, scale bar in µm, title."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mil.run import SlideAttention
from tiling.artifact import atomic_file
from tiling.geojson import read_polygons
from tiling.slide import Pixels, Slide
from tiling.tissue import read_thumbnail

_LONGEST_SIDE_PX = 1000
_LONGEST_SIDE_INCH = 6.5
_DPI = 150
_COLOURS = "inferno"  # perceptually uniform; more attention is the warm, bright end
_FAINTEST = 0.3  # opacity of the cold end relative to the warm one, so that tissue stays visible
_SMALLEST_SHOWN = 0.1  # of a patch's average share: below, patches are not told apart


def write_png(
    path: Path,
    slide: SlideAttention,
    source: Slide,
    annotation: Path | None,
    opacity: float,
    provenance: dict[str, Any],
) -> None:
    """Draw `slide` over a thumbnail read from `source`. annotation: GeoJSON whose outlines are drawn too."""
    thumbnail = read_thumbnail(source, max(1.0, max(slide.width_l0, slide.height_l0) / _LONGEST_SIDE_PX))
    downsample = thumbnail.downsample
    scores = score_map(slide, thumbnail.pixels.shape[:2], downsample)
    rings = [ring / downsample for polygon in read_polygons(annotation) for ring in polygon] if annotation else []
    figure = _figure(slide, thumbnail.pixels, scores, downsample, rings, opacity)
    text = {"Software": None, "slidemil": json.dumps(provenance, sort_keys=True)}
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata=text, pil_kwargs={"compress_level": 3})


def score_map(slide: SlideAttention, shape: tuple[int, ...], downsample: float) -> NDArray[np.float64]:
    """(H, W) attention × N over the thumbnail, the mean where patches overlap, NaN where there is no patch."""
    total, count = np.zeros(shape[:2]), np.zeros(shape[:2], int)
    starts = np.rint(slide.coords / downsample).astype(int)
    ends = np.rint((slide.coords + slide.patch_size_l0) / downsample).astype(int)
    for (x0, y0), (x1, y1), value in zip(starts, ends, slide.attention * len(slide.attention), strict=True):
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.where(count == 0, np.nan, count))


def _figure(
    slide: SlideAttention,
    pixels: Pixels,
    scores: NDArray[np.float64],
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
    highest = float(np.nanmax(scores, initial=1.0))
    lowest = min(1.0, max(_SMALLEST_SHOWN, float(np.nanmin(scores, initial=1.0))))
    norm = LogNorm(lowest * 0.999, highest * 1.001)
    shown = scores.clip(lowest)
    alpha = opacity * (_FAINTEST + (1 - _FAINTEST) * np.nan_to_num(norm(shown).filled(0)))
    drawn = right.imshow(shown, norm=norm, cmap=_COLOURS, alpha=alpha, interpolation="none")
    bar = figure.colorbar(drawn, ax=(left, right), shrink=0.8, pad=0.01, format="%g")
    bar.set_label("attention (1 = the average patch of this slide)")
    bar.solids.set_alpha(1)  # type: ignore[union-attr]
    ticks = np.geomspace(lowest, highest, 5) if highest > 1.05 * lowest else [1.0]
    bar.set_ticks([float(f"{t:.2g}") for t in ticks if lowest <= float(f"{t:.2g}") <= highest])
    bar.minorticks_off()
    _scale_bar(left, slide.mpp_l0 * downsample, width, height)
    figure.suptitle(_title(slide), fontsize=11)
    left.set_title("slide" + (", annotation in green" if rings else ""), fontsize=9)
    right.set_title("attention" + (", annotation in green" if rings else ""), fontsize=9)
    return figure


def _title(slide: SlideAttention) -> str:
    shown = slide.classes.index(slide.positive) if slide.positive else int(slide.probabilities.argmax())
    probability = f"probability of {slide.classes[shown]}: {slide.probabilities[shown]:.2f}"
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
