"""Figures of merit with 95 % intervals from a bootstrap over patients (percentile method, Efron 1979).

A draw gives every patient a multiplicity; all slides of the patient carry it as their weight. Row 0 of the
weights is 1 for everyone: the value itself. So each figure is one array expression over (1 + draws, n).

For two classes, auroc, sensitivity and specificity are of the positive class. For more they are macro averages
of one class against the rest, over the classes present. A draw that holds a single class is left out. A figure
that is undefined (for example the precision of a class that was never predicted) has value, low and high None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = dict[str, float | None]  # value, low, high
_PERCENTILES = (2.5, 97.5)


def draw_weights(patients: Sequence[str], draws: int, seed: int) -> Floats:
    """Weights (1 + draws, n): ones, then for each draw the multiplicity of the patient of each of n rows."""
    names, of_row = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
    multiplicity = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.vstack([np.ones(len(of_row)), multiplicity[:, of_row]])


def weighted_auroc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """AUROC of scores (n,) for truth (n,) under each row of weights (R, n) -> (R,), ties count one half.

    It is P(score of a positive > score of a negative) + P(equal) / 2; NaN where one side has no weight.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each group of equal scores, (G,)
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)  # (R, G)
    negative = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    below = negative.cumsum(axis=1) - negative / 2
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def macro_auroc(probabilities: Floats, labels: NDArray[np.int64], weights: Floats, positive: int | None) -> Floats:
    """probabilities (n, C), labels (n,), weights (R, n) -> (R,); of the positive class, or one against the rest."""
    classes = range(probabilities.shape[1]) if positive is None else [positive]
    return _mean_of_defined(
        np.stack([weighted_auroc(probabilities[:, c], labels == c, weights) for c in classes], axis=1)
    )


def evaluate(
    table: pd.DataFrame, classes: Sequence[str], positive: int | None, draws: int, seed: int
) -> dict[str, Any]:
    """All figures of a prediction table (columns patient_id, label, prediction, prob_<class>).

    With repeats a slide has several rows; a draw takes all rows of a patient or none, so that repeats do not
    make an interval narrower than the patients allow.
    """
    weights = draw_weights(table["patient_id"].tolist(), draws, seed)
    labels = np.array([classes.index(name) for name in table["label"]])
    predicted = np.array([classes.index(name) for name in table["prediction"]])
    probabilities = table[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64)
    n_classes = len(classes)
    cells = np.eye(n_classes**2)[labels * n_classes + predicted]  # (n, C * C), one-hot
    confusion = (weights @ cells).reshape(-1, n_classes, n_classes)  # (R, truth, prediction)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    truths, guesses, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    recall = _ratio(hits, truths)
    precision = _ratio(hits, guesses)
    others = total[:, None] - truths
    specificity = _ratio(others - (guesses - hits), others)
    single = (truths > 0).sum(axis=1) < 2
    figures = {
        "auroc": macro_auroc(probabilities, labels, weights, positive),
        "balanced_accuracy": _mean_of_defined(recall),
        "sensitivity": _mean_of_defined(recall) if positive is None else recall[:, positive],
        "specificity": _mean_of_defined(specificity) if positive is None else specificity[:, positive],
        "accuracy": _ratio(hits.sum(axis=1), total),
    }
    per_class = {"precision": precision, "recall": recall}
    return {
        **{name: interval(np.where(single, np.nan, values)) for name, values in figures.items()},
        **{
            name: {c: interval(np.where(single, np.nan, values[:, i])) for i, c in enumerate(classes)}
            for name, values in per_class.items()
        },
    }


def patch_accuracy(
    patients: Sequence[str], correct: NDArray[np.int64], patches: NDArray[np.int64], draws: int, seed: int
) -> Interval:
    """Part of test patches whose own prediction equals the label copied from their slide.

    correct, patches: (n,) counts of each slide. On slides with a small lesion even a perfect classifier of
    patches cannot come near 1, since most copied labels are wrong.
    """
    weights = draw_weights(patients, draws, seed)
    return interval(_ratio(weights @ correct, weights @ patches))


@dataclass(frozen=True)
class Difference:
    """AUROC of the first table less that of the second; `p` two-sided, for a difference of 0."""

    value: float
    low: float
    high: float
    p: float


def auroc_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    classes: Sequence[str],
    positive: int | None,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """Paired patient-level bootstrap of two prediction tables (columns slide_id, repeat, … of predictions.csv).

    Raises ValueError unless both have the same slides in the same repeats.
    """
    keys = ["slide_id", "repeat"]
    first, second = (t.sort_values(keys, ignore_index=True) for t in (first, second))
    if not first[[*keys, "label"]].equals(second[[*keys, "label"]]):
        raise ValueError("the two prediction tables do not hold the same slides, repeats and labels")
    weights = draw_weights(first["patient_id"].tolist(), draws, seed)
    labels = np.array([classes.index(name) for name in first["label"]])
    columns = [f"prob_{name}" for name in classes]
    aurocs = [macro_auroc(t[columns].to_numpy(np.float64), labels, weights, positive) for t in (first, second)]
    difference = aurocs[0] - aurocs[1]
    drawn = difference[1:][np.isfinite(difference[1:])]
    low, high = np.percentile(drawn, _PERCENTILES)
    one_sided = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
    return Difference(float(difference[0]), float(low), float(high), float(min(1.0, 2 * one_sided)))


def interval(values: Floats) -> Interval:
    """values (1 + draws,), the figure itself first -> its percentile interval over the draws that define it."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(drawn, _PERCENTILES)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def choose_threshold(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Threshold (score >= it is positive) with the best balanced accuracy: a midpoint between two scores.

    Among equally good ones the one nearest to 0.5. truth (n,) must hold both classes.
    """
    levels = np.unique(scores)
    candidates = np.concatenate([[levels[0] / 2], (levels[:-1] + levels[1:]) / 2, [(1 + levels[-1]) / 2]])
    called = scores >= candidates[:, None]  # (candidates, n)
    balanced = called[:, truth].mean(axis=1) + (~called[:, ~truth]).mean(axis=1)
    best = candidates[np.isclose(balanced, balanced.max())]
    return float(best[np.abs(best - 0.5).argmin()])


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _mean_of_defined(values: Floats) -> Floats:
    """(R, C) -> (R,), the mean over entries that are not NaN; NaN if there is none."""
    return _ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1))
