"""Figures of merit with 95 % intervals from a bootstrap over patients (percentile method, Efron 1979).

A draw gives every patient a multiplicity; all slides of the patient carry it as their weight. Row 0 of the
weights is 1 for everyone: the value itself. So each figure is one array expression over (1 + draws, n).

For two classes, auroc, auprc (average precision), f1, sensitivity and specificity are of the positive class. For
more they are macro averages of one class against the rest, over the classes present. mcc is Matthews' correlation
coefficient, for more than two classes Gorodkin's (2004). brier is the mean squared error of the positive class's
probability; for more classes summed over them (0 to 2, Brier 1950). ece is the expected calibration error in ten bins
of equal width: of the positive class's probability, for more classes of the largest one (Guo et al., ICML 2017).
Noise adds to it, so in a small cohort it and its interval lie too high.

`auroc` is pooled: a positive slide is compared with the negative ones of all folds, whose models may differ in scale.
`auroc_of_folds`, where there are several, is the mean over repeats and folds of each one's own AUROC; folds that hold a
single class, in a draw or at all, are left out. `auroc_delong` is the pooled AUROC with DeLong's interval, see
mil.metrics.delong. A draw that holds a single class is
left out. A figure that is undefined (the precision of a class that was never predicted) has value, low and high None.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.metrics.bootstrap import Floats, Interval, draw_weights, interval
from mil.metrics.delong import delong_interval

_BINS = 10  # of the expected calibration error


def weighted_auroc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """AUROC of scores (n,) for truth (n,) under each row of weights (R, n) -> (R,), ties count one half.

    It is P(score of a positive > score of a negative) + P(equal) / 2; NaN where one side has no weight.
    """
    return _areas(*_by_score(scores, truth, weights))[0]


def weighted_auprc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision (the area of the precision-recall steps) under each row of weights (R, n) -> (R,)."""
    return _areas(*_by_score(scores, truth, weights))[1]


def _by_score(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight (R, G) of positives and of negatives in each group of equal scores, the groups rising."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each group of equal scores, (G,)
    ordered = weights[:, order]
    every = np.add.reduceat(ordered, starts, axis=1) if len(starts) < len(order) else ordered
    of_positives = ordered * truth[order]
    positive = np.add.reduceat(of_positives, starts, axis=1) if len(starts) < len(order) else of_positives
    return positive, every - positive


def _areas(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """AUROC and average precision, each (R,), of weights (R, G) by rising score."""
    up_to = negative.cumsum(axis=1)
    positives, negatives = positive.sum(axis=1), up_to[:, -1]
    auroc = _ratio(np.einsum("rg,rg->r", positive, up_to - negative / 2), positives * negatives)
    called = positives[:, None] - positive.cumsum(axis=1) + positive  # positives with at least the group's score
    precision = called / np.maximum(called + negatives[:, None] - up_to + negative, np.finfo(np.float64).tiny)
    return auroc, _ratio(np.einsum("rg,rg->r", positive, precision), positives)


def macro_auroc(probabilities: Floats, labels: NDArray[np.int64], weights: Floats, positive: int | None) -> Floats:
    """probabilities (n, C), labels (n,), weights (R, n) -> (R,); of the positive class, or one against the rest."""
    classes = range(probabilities.shape[1]) if positive is None else [positive]
    return _mean_of_defined(
        np.stack([weighted_auroc(probabilities[:, c], labels == c, weights) for c in classes], axis=1)
    )


def evaluate(
    table: pd.DataFrame, classes: Sequence[str], positive: int | None, draws: int, seed: int
) -> dict[str, Any]:
    """All figures of a prediction table (columns patient_id, repeat, fold, label, prediction, prob_<class>).

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
    others = total[:, None] - truths
    ranked = [_areas(*_by_score(probabilities[:, c], labels == c, weights)) for c in range(n_classes)]
    of_class = {
        "auroc": np.stack([auroc for auroc, _ in ranked], axis=1),
        "auprc": np.stack([auprc for _, auprc in ranked], axis=1),
        "precision": _ratio(hits, guesses),
        "recall": _ratio(hits, truths),
        "specificity": _ratio(others - (guesses - hits), others),
        "f1": np.where(truths > 0, _ratio(2 * hits, truths + guesses), np.nan),
    }  # each (R, C)
    chosen = {
        name: _mean_of_defined(values) if positive is None else values[:, positive] for name, values in of_class.items()
    }
    single = (truths > 0).sum(axis=1) < 2

    def figure(values: Floats) -> Interval:
        return interval(np.where(single, np.nan, values))

    figures = {
        "auroc": chosen["auroc"],
        **_of_folds(table, probabilities, labels, weights, positive),
        "auprc": chosen["auprc"],
        "balanced_accuracy": _mean_of_defined(of_class["recall"]),
        "sensitivity": chosen["recall"],
        "specificity": chosen["specificity"],
        "accuracy": _ratio(hits.sum(axis=1), total),
        "f1": chosen["f1"],
        "mcc": _matthews(hits, truths, guesses, total),
        "brier": _ratio(weights @ _squared_error(probabilities, labels, positive), total),
        "ece": _calibration_error(probabilities, labels, positive, weights),
    }
    by_class = {name if name in ("precision", "recall") else f"{name}_by_class": v for name, v in of_class.items()}
    result: dict[str, Any] = {name: figure(values) for name, values in figures.items()}
    for name, values in by_class.items():
        result[name] = {c: figure(values[:, i]) for i, c in enumerate(classes)}
    if positive is not None:
        patients = table["patient_id"].to_numpy(dtype=str)
        result["auroc_delong"] = delong_interval(probabilities[:, positive], labels == positive, patients)
    return result


def _of_folds(
    table: pd.DataFrame, probabilities: Floats, labels: NDArray[np.int64], weights: Floats, positive: int | None
) -> dict[str, Floats]:
    if "fold" not in table:
        return {}
    rows = [np.asarray(own) for own in table.groupby(["repeat", "fold"]).indices.values()]
    if len(rows) < 2:
        return {}
    each = [macro_auroc(probabilities[own], labels[own], weights[:, own], positive) for own in rows]
    return {"auroc_of_folds": _mean_of_defined(np.stack(each, axis=1))}


def _matthews(hits: Floats, truths: Floats, guesses: Floats, total: Floats) -> Floats:
    """(R,) from hits, truths and guesses (R, C) and total (R,); 0 where only one class was predicted."""
    covariance = hits.sum(axis=1) * total - (truths * guesses).sum(axis=1)
    spreads = (total**2 - (truths**2).sum(axis=1)) * (total**2 - (guesses**2).sum(axis=1))
    return np.where(spreads > 0, covariance / np.sqrt(np.where(spreads > 0, spreads, 1)), 0.0)


def _squared_error(probabilities: Floats, labels: NDArray[np.int64], positive: int | None) -> Floats:
    """(n,) of each row."""
    squared = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return squared.sum(axis=1) if positive is None else squared[:, positive]


def _calibration_error(
    probabilities: Floats, labels: NDArray[np.int64], positive: int | None, weights: Floats
) -> Floats:
    """(R,): the mean over rows of |probability - part that came true| of their bin."""
    if positive is None:
        said, true = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        said, true = probabilities[:, positive], labels == positive
    bins = np.eye(_BINS)[np.minimum((said * _BINS).astype(int), _BINS - 1)]  # (n, bins), one-hot
    return _ratio(np.abs(weights @ (bins * (said - true)[:, None])).sum(axis=1), weights.sum(axis=1))


def patch_accuracy(
    patients: Sequence[str], correct: NDArray[np.int64], patches: NDArray[np.int64], draws: int, seed: int
) -> Interval:
    """Part of test patches whose own prediction equals the label copied from their slide.

    correct, patches: (n,) counts of each slide. On slides with a small lesion even a perfect classifier of
    patches cannot come near 1, since most copied labels are wrong.
    """
    weights = draw_weights(patients, draws, seed)
    return interval(_ratio(weights @ correct, weights @ patches))


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _mean_of_defined(values: Floats) -> Floats:
    """(R, C) -> (R,), the mean over entries that are not NaN; NaN if there is none."""
    return _ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1))
