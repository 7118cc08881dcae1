"""Figures of predicted numbers with 95 % intervals from a bootstrap over patients, see mil.metrics.bootstrap.

mae and rmse are in the target's own unit. mae_constant is what the best single number would reach, the median of these
very labels: it knows more than a model may. r2 is 1 less the squared error over that of the labels' mean, so 0 is no
better than a constant, and it can be negative. pearson and spearman are correlations; spearman's ranks are those
inside of each draw. coverage is the part of the labels that lie in the range `low` to `high`, width its mean width.

Where a few large errors make most of a figure, percentiles of few patients are too short. So the intervals of mae, rmse
and pearson are studentised, on the logarithm and on Fisher's z (1915), with the influence of each row from the delta
method. In runs of earlier releases they are percentiles too.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import (
    FISHERS_Z,
    LOGARITHM,
    LOGARITHM_OF_SQUARE,
    Bootstrap,
    Floats,
    Interval,
    clustered_errors,
    draw_weights,
    interval,
    studentised_interval,
)

_NORMAL = 1.96  # of 95 %


def evaluate_numbers(table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Interval]:
    """All figures of a prediction table (columns patient_id, label, value, low, high; the range may be empty)."""
    patients = table["patient_id"].tolist()
    weights = draw_weights(patients, bootstrap.draws, bootstrap.seed)
    truth, said = numbers_of(table)
    low, high = range_of(table)
    known = np.isfinite(low)
    inside, width = (low <= truth) & (truth <= high), np.where(known, high - low, 0.0)
    return {
        "mae": mean_error_interval(table, weights),
        "mae_constant": interval(_median_error(truth, weights)),
        "rmse": _rmse(said - truth, weights, patients),
        "r2": interval(_explained(said, truth, weights)),
        "pearson": _pearson(said, truth, weights, patients),
        "spearman": interval(rank_correlation(said, truth, weights)),
        "coverage": interval(_mean(inside.astype(np.float64), weights * known)),
        "width": interval(_mean(width, weights * known)),
    }


def _rmse(errors: Floats, weights: Floats, patients: Sequence[str]) -> Interval:
    mean, count = _mean(errors**2, weights), len(set(patients))
    spread = clustered_errors(_ratio(errors**2, mean[:, None]) - 1, weights, patients)
    correction = count / (count - _NORMAL) if count > _NORMAL else 1.0
    return studentised_interval(np.sqrt(mean), spread, LOGARITHM_OF_SQUARE, correction)


def _pearson(said: Floats, truth: Floats, weights: Floats, patients: Sequence[str]) -> Interval:
    r = correlation(said, truth, weights)
    x, y = (_standardised(values, weights) for values in (said, truth))
    influence = x * y - r[:, None] / 2 * (x**2 + y**2)  # of r
    spread = _ratio(clustered_errors(influence, weights, patients), 1 - r**2)
    return studentised_interval(r, spread, FISHERS_Z)


def _standardised(values: Floats, weights: Floats) -> Floats:
    """(R, n), with mean 0 and deviation 1 in each draw; NaN where all are the same."""
    centred = values - _mean(values, weights)[:, None]
    return _ratio(centred, np.sqrt(_ratio((weights * centred**2).sum(axis=1), weights.sum(axis=1)))[:, None])


def numbers_of(table: pd.DataFrame) -> tuple[Floats, Floats]:
    """Labels and predicted values (n,) of a prediction table."""
    return table["label"].to_numpy().astype(np.float64), table["value"].to_numpy(np.float64)


def range_of(table: pd.DataFrame) -> tuple[Floats, Floats]:
    """Ends (n,) of each row's range, NaN where it has none."""
    return table["low"].to_numpy(np.float64), table["high"].to_numpy(np.float64)


def mean_error(table: pd.DataFrame, weights: Floats) -> Floats:
    """Mean absolute error of a table (n rows) under weights (R, n) -> (R,)."""
    truth, said = numbers_of(table)
    return _mean(np.abs(said - truth), weights)


def mean_error_interval(table: pd.DataFrame, weights: Floats) -> Interval:
    """Of draws (1 + R, n) over the patients of a table (n rows)."""
    truth, said = numbers_of(table)
    mean = mean_error(table, weights)
    influence = _ratio(np.abs(said - truth), mean[:, None]) - 1  # of its logarithm
    return studentised_interval(mean, clustered_errors(influence, weights, table["patient_id"].tolist()), LOGARITHM)


def correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's r of x and y, (n,) or (R, n), under weights (R, n) -> (R,); NaN where one of them is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (x, y))
    spread = np.sqrt((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1))
    least = 1e-12 * (np.abs(x).max(axis=1) * np.abs(y).max(axis=1)) * total[:, 0]
    return _ratio((weights * x * y).sum(axis=1), np.where(spread > least, spread, 0.0))


def rank_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's ρ: Pearson's r of the midranks that x and y (n,) have in each draw (R, n) -> (R,)."""
    return correlation(_midranks(x, weights), _midranks(y, weights), weights)


def _midranks(values: Floats, weights: Floats) -> Floats:
    """(R, n), less a half: the weight below each value and half of that of its equals."""
    order = np.argsort(values, kind="stable")
    _, group = np.unique(values, return_inverse=True)
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    of_group = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = (of_group.cumsum(axis=1) - of_group / 2)[:, group]
    return ranks


def _median_error(truth: Floats, weights: Floats) -> Floats:
    """(R,) mean absolute error of the weighted median of truth (n,)."""
    order = np.argsort(truth, kind="stable")
    up_to = weights[:, order].cumsum(axis=1)
    median = truth[order][(up_to >= up_to[:, -1:] / 2).argmax(axis=1)]
    return _ratio((weights * np.abs(truth - median[:, None])).sum(axis=1), weights.sum(axis=1))


def _explained(said: Floats, truth: Floats, weights: Floats) -> Floats:
    mean = _mean(truth, weights)[:, None]
    spread = (weights * (truth - mean) ** 2).sum(axis=1)
    return 1 - _ratio(weights @ (said - truth) ** 2, spread)


def _mean(values: Floats, weights: Floats) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
