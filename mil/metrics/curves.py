"""Curves of predictions with their bootstrap draws: ROC, precision by recall, calibration.

Each has one row for every row of weights: row 0 is the data itself, the others make its 95 % band.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.metrics.bootstrap import PERCENTILES, Bootstrap, Floats, draw_weights

GRID = np.linspace(0, 1, 201)
_BINS = 10


@dataclass(frozen=True)
class Scores:
    """Out-of-fold predictions as arrays, with the bootstrap weights over patients (row 0: the data itself)."""

    classes: tuple[str, ...]
    positive: int | None
    labels: NDArray[np.int64]  # (n,)
    probabilities: Floats  # (n, C)
    weights: Floats  # (1 + draws, n)

    @property
    def shown(self) -> list[int]:
        """The classes that have a curve: the positive one, or each against the rest where the test slides have it."""
        every = range(len(self.classes)) if self.positive is None else [self.positive]
        return [c for c in every if 0 < (self.labels == c).sum() < len(self.labels)]


def scores_of(predictions: pd.DataFrame, classes: Sequence[str], positive: int | None, bootstrap: Bootstrap) -> Scores:
    """predictions: columns patient_id, label and prob_<class>."""
    return Scores(
        tuple(classes),
        positive,
        np.array([list(classes).index(name) for name in predictions["label"]], np.int64),
        predictions[[f"prob_{name}" for name in classes]].to_numpy(np.float64),
        draw_weights(predictions["patient_id"].tolist(), bootstrap.draws, bootstrap.seed),
    )


def roc_curves(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Sensitivity (R, 201) on an even grid of 1 - specificity, for each row of weights (R, n); NaN if undefined."""
    true, called = _by_threshold(scores, truth, weights)
    false = called - true
    curves = np.full((len(weights), len(GRID)), np.nan)
    for r in np.flatnonzero((true[:, -1] > 0) & (false[:, -1] > 0)):
        x, y = np.append(0, false[r] / false[r, -1]), np.append(0, true[r] / true[r, -1])
        curves[r] = np.interp(GRID, x, y)
    return curves


def precision_curves(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Precision (R, 201) at the highest threshold that reaches each recall of an even grid; NaN if undefined.

    scores, truth (n,), weights (R, n). Without interpolation, like average precision (Davis and Goadrich, ICML 2006).
    """
    true, called = _by_threshold(scores, truth, weights)
    curves = np.full((len(weights), len(GRID)), np.nan)
    for r in np.flatnonzero(true[:, -1] > 0):
        some = called[r] > 0
        hits, calls = true[r, some], called[r, some]
        reached = np.searchsorted(hits, GRID * hits[-1] - 1e-9 * hits[-1])
        curves[r] = hits[reached] / calls[reached]
    return curves


def _by_threshold(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight (R, G) of true and of all rows that reach each of G thresholds, the highest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    ordered = weights[:, order]
    return (ordered * truth[order]).cumsum(axis=1)[:, last], ordered.cumsum(axis=1)[:, last]


def band(curves: Floats) -> tuple[Floats, Floats] | None:
    """The 95 % band (201,), (201,) of curves (R, 201) over the draws that define them; None if none does."""
    drawn = curves[1:][np.isfinite(curves[1:]).all(axis=1)]
    if not len(drawn):
        return None
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    return low, high


@dataclass(frozen=True)
class CalibrationBin:
    """Slides whose probability lies in one tenth; `low` and `high` are NaN where too few draws have one of them."""

    said: float  # mean probability
    true: float  # part of them that have the class
    low: float
    high: float
    rows: int


def calibration_bins(scores: Scores) -> list[CalibrationBin]:
    """Ten bins of equal width, empty ones left out: of the positive class's probability, or of the largest one."""
    if scores.positive is None:
        said, true = scores.probabilities.max(axis=1), scores.probabilities.argmax(axis=1) == scores.labels
    else:
        said, true = scores.probabilities[:, scores.positive], scores.labels == scores.positive
    place = np.minimum((said * _BINS).astype(int), _BINS - 1)
    bins = []
    for b in np.unique(place):
        own = place == b
        weights = scores.weights[1:, own]
        total = weights.sum(axis=1)
        drawn = (weights @ true[own])[total > 0] / total[total > 0]
        low, high = np.percentile(drawn, PERCENTILES) if len(drawn) else (np.nan, np.nan)
        mean = (float(said[own].mean()), float(true[own].mean()))
        bins.append(CalibrationBin(*mean, float(low), float(high), int(own.sum())))
    return bins
