"""Patch scores as a picture of their own: a grid of scores over the slide, and its colours.

All forms of a heatmap (PNG, OME-TIFF, HTML, viewer) are made of these two, so that they cannot disagree.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import NDArray

from mil.maps.scores import PatchScores

COLOURS = "inferno"  # perceptually uniform; more is the warm, bright end
_FAINTEST = 0.3  # opacity of the cold end relative to the warm one, so that tissue stays visible
_NEUTRAL = 0.1  # that of the middle relative to the ends, where it speaks neither for nor against
_SMALLEST_SHARE = 0.1  # of an average patch: logarithmic colours do not tell shares below this apart
_BAR_STEPS = 65
_LEAST_LOGIT, _MOST_LOGIT = 1.0, 5.0  # half-widths of colours of logits; log-odds beyond 5 are all "sure" (99.3 %)
_UNCOVERED = 1e-6  # share of a pixel below which there is no patch in it; rounding stays far below


@dataclass(frozen=True)
class ColourScale:
    """Scores from `low` (cold) to `high` (warm); those beyond take the colour of the end."""

    low: float
    high: float
    logarithmic: bool = False

    def norm(self) -> Normalize:
        kind = LogNorm if self.logarithmic else Normalize
        return kind(self.low, self.high, clip=True)

    @property
    def signed(self) -> bool:
        """Whether its middle is 0, which speaks neither for nor against."""
        return self.low == -self.high

    def passed_by(self, values: NDArray[np.float64]) -> tuple[bool, bool]:
        """Whether any lies below, and above: an end's colour then stands for those beyond it too."""
        return bool((values < self.low).any()), bool((values > self.high).any())

    @property
    def middle(self) -> float:
        """The score of the colour half-way."""
        return float(self.norm().inverse(0.5))


def colour_scale(scores: PatchScores) -> ColourScale:
    """The range of the scores of a slide, or of all slides of its bag; the same in every form.

    0 speaks neither for nor against and has the middle colour, unless scores are attention.
    """
    if not len(scores.values):
        return ColourScale(0.0, 1.0)
    low, high = scores.span or (float(scores.values.min()), float(scores.values.max()))
    if scores.logarithmic:
        low, high = min(1.0, max(_SMALLEST_SHARE, low)) * 0.999, max(1.0, high) * 1.001
    elif scores.kind != "attention":
        high = max(-low, high) or 0.5
        high = float(np.clip(high, _LEAST_LOGIT, _MOST_LOGIT)) if scores.kind == "logit" else high
        low = -high
    elif high <= low:
        low, high = low - 0.5, high + 0.5
    return ColourScale(low, high, scores.logarithmic)


def bar_ticks(scores: PatchScores) -> list[str]:
    """What stands at the colour bar's low end, middle and high end."""
    scale = colour_scale(scores)
    below, above = scale.passed_by(scores.values)
    low, middle, high = map(said, (scale.low, scale.middle, scale.high))
    return [f"≤ {low}" if below else low, middle, f"≥ {high}" if above else high]


def said(score: float) -> str:
    return f"{score:.3g}" if abs(score) < 1000 else f"{score:,.0f}"


def score_grid(
    coords_l0: NDArray[np.int64],
    values: NDArray[np.floating],
    patch_size_l0: float,
    shape: tuple[int, int],
    downsample: float,
    origin_l0: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """(H, W) mean score of what lies in each pixel, weighted by area; NaN where no patch lies.

    coords_l0: (N, 2) top-left corners (x, y); values: (N,); shape: (H, W).
    A pixel is `downsample` level-0 pixels wide; the first one's top-left corner is `origin_l0` (x, y).
    A pixel that a patch covers by less than a half counts as one without, so an edge is off by half a pixel at most.

    The area of a square in a pixel is the product of its cover along each axis. Differences of cover are four points
    along each axis, so the work is 16 points a patch and two cumulative sums, whatever the overlap.
    """
    height, width = shape
    starts = (coords_l0 - np.asarray(origin_l0)) / downsample
    x_at, x_of = _steps(starts[:, 0], patch_size_l0 / downsample, width)
    y_at, y_of = _steps(starts[:, 1], patch_size_l0 / downsample, height)
    places = (y_at[:, :, None] * (width + 2) + x_at[:, None, :]).reshape(-1)
    areas = (y_of[:, :, None] * x_of[:, None, :]).reshape(len(starts), 16)
    covered = _integrated(places, areas, shape)
    total = _integrated(places, areas * np.asarray(values, np.float64)[:, None], shape)
    shown = covered >= 0.5 - _UNCOVERED
    mean = np.full(shape, np.nan)
    mean[shown] = total[shown] / covered[shown]
    return mean.clip(values.min(), values.max()) if len(values) else mean


def _integrated(places: NDArray[np.int64], weights: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W) from differences along both axes of a grid two larger."""
    height, width = shape[0] + 2, shape[1] + 2
    grid: NDArray[np.float64] = np.bincount(places, weights.reshape(-1), height * width).astype(np.float64, copy=False)
    grid = grid.reshape(height, width)
    for axis in (0, 1):
        np.cumsum(grid, axis, out=grid)
    return grid[: shape[0], : shape[1]]


def _steps(start: NDArray[np.float64], length: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Differences (N, 4) of the cover of pixels by [start, start + length): where, and how much."""
    ends = np.stack([start, start + length], axis=1).clip(0, size)
    whole = np.floor(ends).astype(np.int64)
    part = ends - whole
    rising = np.array([1.0, -1.0])
    at = np.concatenate([whole, whole + 1], axis=1)
    return at, np.concatenate([rising * (1 - part), rising * part], axis=1)


def render(grid: NDArray[np.float64], scale: ColourScale, opacity: float | None = None) -> NDArray[np.uint8]:
    """(H, W) scores -> (H, W, 4) RGBA; pixels without a patch are transparent.

    opacity: of the warm end, the cold one being fainter, or of both ends, the middle of signed scores being fainter;
    None: all patches are opaque.
    """
    there = ~np.isnan(grid)
    level = np.asarray(scale.norm()(np.where(there, grid, scale.low)), np.float64)
    rgba = np.asarray(colormaps[COLOURS](level, bytes=True))
    alpha = np.ones_like(level) if opacity is None else opacity * _strength(level, scale.signed)
    rgba[..., 3] = np.rint(255 * alpha * there)
    return rgba


def colour_bar(scale: ColourScale) -> NDArray[np.uint8]:
    """(1, _BAR_STEPS, 4) RGBA, the colours from low to high."""
    steps = np.asarray(scale.norm().inverse(np.linspace(0, 1, _BAR_STEPS)), np.float64)
    return render(steps[None, :], scale)


def _strength(level: NDArray[np.float64], signed: bool) -> NDArray[np.float64]:
    """Opacity, 0 to 1, of colours at `level`, 0 (cold) to 1 (warm)."""
    return _NEUTRAL + (1 - _NEUTRAL) * abs(2 * level - 1) if signed else _FAINTEST + (1 - _FAINTEST) * level
