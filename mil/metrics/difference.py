"""Is one AUROC higher than another on the same slides? A paired comparison over patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import PERCENTILES, draw_weights
from mil.metrics.classification import macro_auroc
from mil.metrics.delong import delong_p


@dataclass(frozen=True)
class Difference:
    """AUROC of the first table less that of the second, with its bootstrap interval and p values for no difference."""

    value: float
    low: float
    high: float
    p: float  # two-sided, of the paired bootstrap
    p_delong: float | None  # of DeLong's paired test clustered by patient; None if undefined or for more classes


def auroc_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    classes: Sequence[str],
    positive: int | None,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """Paired patient-level comparison of two prediction tables (columns slide_id, repeat, … of predictions.csv).

    Raises ValueError unless both have the same slides and labels in the same repeats.
    """
    keys = ["slide_id", "repeat"]
    first, second = (t.sort_values(keys, ignore_index=True) for t in (first, second))
    if not first[[*keys, "label"]].equals(second[[*keys, "label"]]):
        raise ValueError("the two prediction tables do not hold the same slides, repeats and labels")
    patients = first["patient_id"].to_numpy(dtype=str)
    weights = draw_weights(patients.tolist(), draws, seed)
    labels = np.array([classes.index(name) for name in first["label"]])
    columns = [f"prob_{name}" for name in classes]
    probabilities = [t[columns].to_numpy(np.float64) for t in (first, second)]
    aurocs = [macro_auroc(p, labels, weights, positive) for p in probabilities]
    difference = aurocs[0] - aurocs[1]
    drawn = difference[1:][np.isfinite(difference[1:])]
    low, high = np.percentile(drawn, PERCENTILES)
    one_sided = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
    p_delong = None
    if positive is not None:
        scores = [p[:, positive] for p in probabilities]
        p = delong_p(scores[0], scores[1], labels == positive, patients)
        p_delong = p if np.isfinite(p) else None
    return Difference(float(difference[0]), float(low), float(high), float(min(1.0, 2 * one_sided)), p_delong)
