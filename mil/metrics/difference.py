"""Is one figure higher than another on the same slides? A paired comparison over patients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import PERCENTILES, Bootstrap, Floats, draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.metrics.delong import delong_p


@dataclass(frozen=True)
class Difference:
    """A figure of the first table less that of the second, with its interval and p values for no difference."""

    value: float
    low: float
    high: float
    p: float  # two-sided, of the paired bootstrap
    p_delong: float | None = None  # of DeLong's paired test of AUROCs clustered by patient, where it applies


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    figure: Callable[[pd.DataFrame, Floats], Floats],
    bootstrap: Bootstrap,
) -> tuple[Difference, dict[str, float | None]]:
    """Patient-level comparison of two prediction tables, and the second's own figure as an interval.

    figure: of a table (n rows) under each row of weights (R, n) -> (R,).
    Raises ValueError unless both have the same slides and labels in the same repeats.
    """
    first, second = _in_one_order(first, second)
    weights = draw_weights(first["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
    own, others = figure(first, weights), figure(second, weights)
    return _difference(own - others), interval(others)


def auroc_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    classes: Sequence[str],
    positive: int | None,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """`paired_difference` of AUROCs, with DeLong's test (columns slide_id, repeat, … of predictions.csv)."""
    first, second = _in_one_order(first, second)
    patients = first["patient_id"].to_numpy(dtype=str)
    weights = draw_weights(patients.tolist(), draws, seed)
    labels = np.array([classes.index(name) for name in first["label"]])
    columns = [f"prob_{name}" for name in classes]
    probabilities = [t[columns].to_numpy(np.float64) for t in (first, second)]
    aurocs = [macro_auroc(p, labels, weights, positive) for p in probabilities]
    p_delong = None
    if positive is not None:
        scores = [p[:, positive] for p in probabilities]
        p = delong_p(scores[0], scores[1], labels == positive, patients)
        p_delong = p if np.isfinite(p) else None
    return _difference(aurocs[0] - aurocs[1], p_delong)


def _in_one_order(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    keys = ["slide_id" if "slide_id" in first and "slide_id" in second else "patient_id", "repeat"]
    first, second = (t.sort_values(keys, ignore_index=True) for t in (first, second))
    if not first[[*keys, "label"]].equals(second[[*keys, "label"]]):
        raise ValueError("the two prediction tables do not hold the same slides, repeats and labels")
    return first, second


def _difference(values: Floats, p_delong: float | None = None) -> Difference:
    """values (1 + draws,), that of the data first."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, PERCENTILES)
    one_sided = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
    return Difference(float(values[0]), float(low), float(high), float(min(1.0, 2 * one_sided)), p_delong)
