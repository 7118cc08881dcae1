"""Figures of predicted grades with 95 % intervals from a bootstrap over patients, see mil.metrics.bootstrap.

kappa is Cohen's, with quadratic weights: a grade off by two counts four times as much as one off by one (Cohen 1968); 0
is chance, 1 is perfect. mae is the mean number of grades off. rps is the ranked probability score: the squared error
of the probabilities to be above each grade, summed (Epstein 1969). spearman is of the labels and the mean grade as
predicted. auroc_above tells those above a grade from the others; auroc is its mean over the grades.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.metrics.bootstrap import Floats, interval
from mil.metrics.classification import weighted_auroc
from mil.metrics.regression import rank_correlation

Grades = NDArray[np.int64]  # (n,) positions of K grades, from low to high


def evaluate_grades(
    labels: Grades, predicted: Grades, above: Floats, names: Sequence[str], weights: Floats
) -> dict[str, Any]:
    """above (n, K - 1): probability to be above each grade but the highest; names (K,); weights (R, n)."""
    total, steps = weights.sum(axis=1), np.arange(len(names) - 1)
    off = np.abs(labels - predicted)
    wrong = ((above - (labels[:, None] > steps)) ** 2).sum(axis=1)
    aurocs = np.stack([weighted_auroc(above[:, k], labels > k, weights) for k in steps], axis=1)
    figures = {
        "kappa": quadratic_kappa(labels, predicted, weights),
        "mae": weights @ off / total,
        "accuracy": weights @ (off == 0) / total,
        "within_one": weights @ (off <= 1) / total,
        "spearman": rank_correlation(above.sum(axis=1), labels.astype(np.float64), weights),
        "auroc": aurocs.mean(axis=1),
        "rps": weights @ wrong / total,
    }
    by_grade = {f"above {name}": interval(of) for name, of in zip(names, aurocs.T, strict=False)}
    return {**{name: interval(values) for name, values in figures.items()}, "auroc_above": by_grade}


def quadratic_kappa(labels: Grades, predicted: Grades, weights: Floats) -> Floats:
    """(R,) under weights (R, n); NaN where labels and predictions are all of one grade."""
    total = weights.sum(axis=1)
    means = [weights @ of / total for of in (labels, predicted)]
    squares = [weights @ of**2 / total for of in (labels, predicted)]
    seen = weights @ (labels - predicted) ** 2 / total
    by_chance = squares[0] + squares[1] - 2 * means[0] * means[1]  # E (a - b)² of independent a and b
    return np.where(by_chance > 1e-12, 1 - seen / np.where(by_chance > 1e-12, by_chance, 1), np.nan)
