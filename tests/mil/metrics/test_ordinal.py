"""Figures of grades against scikit-learn, scipy and loops over the draws."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, cohen_kappa_score, roc_auc_score

from mil.metrics.bootstrap import draw_weights
from mil.metrics.ordinal import evaluate_grades, quadratic_kappa

NAMES = ("G1", "G2", "G3", "G4")


def _drawn(seed=0, n=90):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=n)
    odds = (labels + rng.normal(size=n)).round(1)[:, None] - np.arange(3) - 0.5
    above = 1 / (1 + np.exp(-2 * odds))
    return labels, (above >= 0.5).sum(axis=1), above, [f"p{i // 2}" for i in range(n)]


def _by_hand(labels, predicted, above):
    aurocs = [roc_auc_score(labels > k, above[:, k]) for k in range(3)]
    return {
        "kappa": cohen_kappa_score(labels, predicted, weights="quadratic"),
        "mae": np.abs(labels - predicted).mean(),
        "accuracy": accuracy_score(labels, predicted),
        "within_one": np.mean([abs(a - b) <= 1 for a, b in zip(labels, predicted, strict=True)]),
        "spearman": spearmanr(labels, above.sum(axis=1))[0],
        "auroc": np.mean(aurocs),
        "rps": np.mean(
            [sum((p - (y > k)) ** 2 for k, p in enumerate(row)) for y, row in zip(labels, above, strict=True)]
        ),
        **{f"above {name}": auroc for name, auroc in zip(NAMES[:3], aurocs, strict=True)},
    }


def test_every_figure_and_both_ends_of_its_interval_equal_a_loop_over_draws():
    """A draw is a table in which a patient's rows stand as often as it was drawn."""
    labels, predicted, above, patients = _drawn()
    weights = draw_weights(patients, 100, 5)
    found = evaluate_grades(labels, predicted, above, NAMES, weights)
    found |= found.pop("auroc_above")
    rows = [np.repeat(np.arange(90), row.astype(int)) for row in weights]
    drawn = [_by_hand(labels[own], predicted[own], above[own]) for own in rows]
    assert found.keys() == drawn[0].keys()
    for name, figure in found.items():
        low, high = np.percentile([draw[name] for draw in drawn[1:]], (2.5, 97.5))
        assert (figure["value"], figure["low"], figure["high"]) == pytest.approx((drawn[0][name], low, high)), name


def test_kappa_is_not_defined_for_one_grade():
    assert np.isnan(quadratic_kappa(np.ones(4, int), np.ones(4, int), np.ones((1, 4))))[0]
    assert quadratic_kappa(np.array([0, 1, 2]), np.array([0, 1, 2]), np.ones((1, 3)))[0] == 1
