"""Figures of predicted numbers against scipy, scikit-learn and plain loops over the draws."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mil.metrics.bootstrap import Bootstrap, draw_weights
from mil.metrics.regression import correlation, evaluate_numbers, rank_correlation

BOOTSTRAP = Bootstrap(200, 3)


def _table(seed=0, n=60, ties=True):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n) * 10
    said = truth * 0.7 + rng.normal(size=n) * 4
    if ties:
        truth, said = truth.round(-1), said.round()
    half = np.where(np.arange(n) % 9 == 0, np.nan, 8.0)  # some rows have no range
    patients = [f"p{i // 3}" for i in range(n)]
    return pd.DataFrame({"patient_id": patients, "label": truth.astype(str), "value": said}).assign(
        low=said - half, high=said + half
    )


def _by_hand(table):
    """Every figure of rows as they are, by other people's code."""
    truth, said = table["label"].astype(float).to_numpy(), table["value"].to_numpy()
    ranged = table.dropna()
    inside = ranged["label"].astype(float).between(ranged["low"], ranged["high"])
    return {
        "mae": mean_absolute_error(truth, said),
        "mae_constant": mean_absolute_error(truth, np.full(len(truth), np.median(truth))),
        "rmse": root_mean_squared_error(truth, said),
        "r2": r2_score(truth, said),
        "pearson": pearsonr(truth, said)[0],
        "spearman": spearmanr(truth, said)[0],
        "coverage": inside.mean(),
        "width": (ranged["high"] - ranged["low"]).mean(),
    }


def test_every_figure_and_both_ends_of_its_interval_equal_a_loop_over_draws():
    """A draw is a table in which a patient's rows stand as often as it was drawn."""
    table = _table()
    found = evaluate_numbers(table, BOOTSTRAP)
    weights = draw_weights(table["patient_id"].tolist(), BOOTSTRAP.draws, BOOTSTRAP.seed).astype(int)
    drawn = [_by_hand(table.loc[np.repeat(table.index, row)]) for row in weights]
    assert found.keys() == drawn[0].keys()
    for name, figure in found.items():
        low, high = np.percentile([draw[name] for draw in drawn[1:]], (2.5, 97.5))
        assert (figure["value"], figure["low"], figure["high"]) == pytest.approx((drawn[0][name], low, high)), name


def test_ranks_share_their_mean_where_values_are_equal():
    x, y = np.array([1.0, 1, 2, 3, 3, 3]), np.array([2.0, 1, 1, 5, 4, 4])
    weights = np.array([[1.0] * 6, [0, 3, 1, 0, 2, 1]])
    twice = np.repeat(np.arange(6), weights[1].astype(int))
    assert rank_correlation(x, y, weights) == pytest.approx([spearmanr(x, y)[0], spearmanr(x[twice], y[twice])[0]])


def test_what_is_constant_has_no_correlation_and_no_r2():
    ones = np.ones((1, 5))
    assert np.isnan(correlation(np.full(5, 0.1), np.arange(5.0), ones))[0]
    table = _table().assign(label="7", low=None, high=None)
    found = evaluate_numbers(table, BOOTSTRAP)
    for name in ("r2", "pearson", "spearman", "coverage", "width"):
        assert found[name] == {"value": None, "low": None, "high": None}
    assert found["mae"]["value"] == pytest.approx(np.abs(table["value"] - 7).mean())
