"""The charts of report.html, each as SVG text, from tables of the run directory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.metrics.bootstrap import Floats, draw_weights
from mil.pages.chart import COLOURS, Chart
from mil.report.plots import GRID, roc_curves
from mil.run.tables import kept_epoch

_BINS = 10
_UNIT = (0.0, 1.0)
_HIGHEST_LOSS = 3.0  # of the losses at the start: beyond, a curve that runs away would flatten the others


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


def scores_of(predictions: pd.DataFrame, classes: Sequence[str], positive: int | None, draws: int, seed: int) -> Scores:
    return Scores(
        tuple(classes),
        positive,
        np.array([list(classes).index(name) for name in predictions["label"]], np.int64),
        predictions[[f"prob_{name}" for name in classes]].to_numpy(np.float64),
        draw_weights(predictions["patient_id"].tolist(), draws, seed),
    )


def learning_curve(history: pd.DataFrame, highest: float, epochs: int, said: str) -> str:
    chart = Chart((0, epochs), (0, highest), (300, 200), ("epoch", "loss"), ticks=4, whole_x=True)
    kept = history.iloc[kept_epoch(history)]
    chart.guide([kept["epoch"]] * 2, [0, highest])
    chart.line(history["epoch"], history["train_loss"], "c0")
    chart.line(history["epoch"], history["val_loss"], "c1")
    chart.dot(kept["epoch"], kept["val_loss"], "c1", said=f"kept: epoch {kept['epoch']:.0f}")
    return chart.svg(said)


def loss_axis(histories: Sequence[pd.DataFrame]) -> float:
    """One upper end for all folds: their highest loss, but no more than three times their highest start."""
    both = [history[["train_loss", "val_loss"]].to_numpy(np.float64) for history in histories]
    start = max(float(losses[0].max()) for losses in both)
    return max(min(max(float(losses.max()) for losses in both), _HIGHEST_LOSS * start) * 1.04, 1e-6)


def roc(scores: Scores) -> str:
    chart = Chart(_UNIT, _UNIT, labels=("1 − specificity", "sensitivity"))
    chart.guide(_UNIT, _UNIT)
    for c in scores.shown:
        curves = roc_curves(scores.probabilities[:, c], scores.labels == c, scores.weights)
        _curve(chart, curves, _colour(scores, c))
    return chart.svg("ROC curve of the out-of-fold predictions with its 95 % band")


def precision_recall(scores: Scores) -> str:
    chart = Chart(_UNIT, _UNIT, labels=("recall (sensitivity)", "precision"))
    for c in scores.shown:
        share = float((scores.labels == c).mean())
        chart.guide(_UNIT, (share, share))
        curves = precision_curves(scores.probabilities[:, c], scores.labels == c, scores.weights)
        _curve(chart, curves, _colour(scores, c))
    return chart.svg("Precision by recall of the out-of-fold predictions with its 95 % band")


def precision_curves(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Precision (R, 201) at the highest threshold that reaches each recall of an even grid; NaN if undefined.

    scores, truth (n,), weights (R, n). Without interpolation, like average precision (Davis and Goadrich, ICML 2006).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    ordered = weights[:, order]
    true = (ordered * truth[order]).cumsum(axis=1)[:, last]  # (R, G)
    called = ordered.cumsum(axis=1)[:, last]
    curves = np.full((len(weights), len(GRID)), np.nan)
    for r in np.flatnonzero(true[:, -1] > 0):
        some = called[r] > 0
        hits, calls = true[r, some], called[r, some]
        reached = np.searchsorted(hits, GRID * hits[-1] - 1e-9 * hits[-1])
        curves[r] = hits[reached] / calls[reached]
    return curves


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
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
        mean = (float(said[own].mean()), float(true[own].mean()))
        bins.append(CalibrationBin(*mean, float(low), float(high), int(own.sum())))
    return bins


def calibration(bins: Sequence[CalibrationBin], of: str) -> str:
    chart = Chart(_UNIT, _UNIT, labels=(f"probability of {of}, as predicted", "part that came true"))
    chart.guide(_UNIT, _UNIT)
    chart.line([b.said for b in bins], [b.true for b in bins], "c0 thin")
    most = max(b.rows for b in bins)
    for b in bins:
        if np.isfinite(b.low):
            chart.line([b.said, b.said], [b.low, b.high], "c0 thin")
        said = f"predicted {b.said:.2f}, came true {b.true:.2f} ({b.low:.2f}–{b.high:.2f}), {b.rows} slides"
        chart.dot(b.said, b.true, "c0", 3 + 6 * float(np.sqrt(b.rows / most)), said)
    return chart.svg("Calibration: probability as predicted against the part that came true")


def _curve(chart: Chart, curves: Floats, kind: str) -> None:
    """curves (R, 201): the first is the data's, the others make the band."""
    drawn = curves[1:][np.isfinite(curves[1:]).all(axis=1)]
    if len(drawn):
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        chart.band(GRID, low, high, kind)
    chart.line(GRID, curves[0], kind)


def _colour(scores: Scores, c: int) -> str:
    return "c0" if scores.positive is not None else f"c{c % COLOURS}"
