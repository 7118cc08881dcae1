"""The yardstick of the findings: the probe on one vector a slide, nested in folds by patient.

As in mil.evaluation.baseline: fitted on train, its penalty chosen on val, judged on test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.diagnosis.finding import Figure
from mil.evaluation.baseline import baseline_predictions
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.metrics.difference import Difference, auroc_difference


@dataclass(frozen=True)
class Probe:
    """Out-of-fold predictions (see `baseline_predictions`) and their AUROC with its interval over patients."""

    predictions: pd.DataFrame
    auroc: Figure


@dataclass(frozen=True)
class Compared:
    """Two probes on the same slides and folds; `gain` is AUROC of the second minus that of the first."""

    first: Probe
    second: Probe
    gain: Difference


def linear_probe(cohort: Cohort, folds: Sequence[Fold], vectors: NDArray[np.float64], draws: int, seed: int) -> Probe:
    """vectors: (S, D), one a slide."""
    table = baseline_predictions(cohort, folds, vectors)
    labels = np.array([cohort.classes.index(name) for name in table["label"]])
    probabilities = table[[f"prob_{name}" for name in cohort.classes]].to_numpy(np.float64)
    weights = draw_weights(table["patient_id"].tolist(), draws, seed)
    return Probe(table, dict(interval(macro_auroc(probabilities, labels, weights, cohort.positive))))


def compare_probes(cohort: Cohort, first: Probe, second: Probe, draws: int, seed: int) -> Compared:
    """Paired by patient."""
    tables = (second.predictions, first.predictions)
    return Compared(first, second, auroc_difference(*tables, cohort.classes, cohort.positive, draws, seed))


def figure_of(difference: Difference) -> Figure:
    return {"value": difference.value, "low": difference.low, "high": difference.high}
