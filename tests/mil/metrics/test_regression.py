"""Figures of predicted numbers against scipy, scikit-learn and plain loops over the draws."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr, zscore
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mil.metrics.bootstrap import Bootstrap, draw_weights, interval
from mil.metrics.regression import correlation, evaluate_numbers, mean_error, rank_correlation

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


def _moved(table):
    """Figures with studentised intervals on their scales, and the sums over patients of each row's influence there."""
    truth, said, n = table["label"].astype(float).to_numpy(), table["value"].to_numpy(), len(table)
    off, x, y = said - truth, zscore(said), zscore(truth)
    mae, mse, r = np.abs(off).mean(), np.square(off).mean(), (x * y).mean()
    each = {
        "mae": (np.log(mae), np.abs(off) / mae - 1),
        "rmse": (np.log(mse), off**2 / mse - 1),
        "pearson": (np.arctanh(r), (x * y - r * (x**2 + y**2) / 2) / (1 - r**2)),
    }
    drawn = table["drawn"]  # a patient that is drawn twice is two patients
    return {k: (v, np.sqrt(np.square(pd.Series(of).groupby(drawn).sum()).sum()) / n) for k, (v, of) in each.items()}


def test_every_figure_and_both_ends_of_its_interval_equal_a_loop_over_draws():
    """A draw is a table in which a patient's rows stand as often as it was drawn."""
    table = _table()
    found = evaluate_numbers(table, BOOTSTRAP)
    weights = draw_weights(table["patient_id"].tolist(), BOOTSTRAP.draws, BOOTSTRAP.seed).astype(int)
    drawn = [_drawn(table, row) for row in weights]
    figures, moved = [_by_hand(own) for own in drawn], [_moved(own) for own in drawn]
    assert found.keys() == figures[0].keys()
    few = 20 / (20 - 1.96)  # patients
    back = {"mae": np.exp, "rmse": lambda log: np.sqrt(np.exp(log) * few), "pearson": np.tanh}
    for name, figure in found.items():
        low, high = np.percentile([draw[name] for draw in figures[1:]], (2.5, 97.5))
        if name in back:
            value, error = moved[0][name]
            far = [abs(of[name][0] - value) / of[name][1] for of in moved[1:]]
            reach = np.percentile(far, 95, method="higher") * error * (few if name == "rmse" else 1)
            low, high = back[name](value - reach), back[name](value + reach)
        assert (figure["value"], figure["low"], figure["high"]) == pytest.approx((figures[0][name], low, high)), name


def _drawn(table, row):
    """Rows as often as the weights of `row` say, with a name for each time that their patient was drawn."""
    times = [table[row > k].assign(drawn=lambda own, k=k: own["patient_id"] + f"-{k}") for k in range(row.max())]
    return pd.concat(times, ignore_index=True)


@pytest.mark.parametrize("patients", [1, 2, 3])
def test_too_few_patients_for_errors_of_their_own_have_percentile_intervals(patients):
    table = _table(n=12).assign(patient_id=[f"p{i % patients}" for i in range(12)])
    weights = draw_weights(table["patient_id"].tolist(), BOOTSTRAP.draws, BOOTSTRAP.seed)
    found = evaluate_numbers(table, BOOTSTRAP)["mae"]
    assert found == interval(mean_error(table, weights))


def test_no_error_at_all_is_said_as_such():
    table = _table().assign(value=lambda own: own["label"].astype(float))
    found = evaluate_numbers(table, BOOTSTRAP)
    assert [found[name] for name in ("mae", "rmse")] == [{"value": 0.0, "low": 0.0, "high": 0.0}] * 2
    assert found["pearson"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})


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
