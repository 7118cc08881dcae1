"""The plain baseline that every run is held against: logistic regression on the mean of a slide's patch features.

It has the run's own folds: fitted on train, the strength of its penalty chosen on val (0.01 without val), judged on
test. It takes
seconds, needs no GPU, and where averaging is enough it is hard to beat.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn: small is strong


def slide_means(cohort: Cohort) -> NDArray[np.float64]:
    """(S, D), the mean patch of each slide."""
    return cohort.moments[0]


def baseline_predictions(cohort: Cohort, folds: Sequence[Fold], means: NDArray[np.float64]) -> pd.DataFrame:
    """Out-of-fold probabilities for means (S, D): slide_id, patient_id, repeat, fold, label, prob_<class>…"""
    parts = []
    for fold in folds:
        probabilities = _fit(cohort, fold, means).predict_proba(means[fold.test])
        parts.append(
            pd.DataFrame(
                {
                    "slide_id": cohort.slide_ids[fold.test],
                    "patient_id": cohort.patient_ids[fold.test],
                    "repeat": fold.repeat,
                    "fold": fold.fold,
                    "label": np.array(cohort.classes)[cohort.labels[fold.test]],
                    **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(cohort.classes)},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _fit(cohort: Cohort, fold: Fold, means: NDArray[np.float64]) -> LogisticRegression:
    classes = np.arange(len(cohort.classes))
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)).fit(
            means[fold.train], cohort.labels[fold.train]
        )
        for penalty in _PENALTIES
    ]
    if not len(fold.val):  # scikit-learn's own strength is far too weak for so few slides
        return fitted[_PENALTIES.index(1e-2)]
    losses = [
        log_loss(cohort.labels[fold.val], model.predict_proba(means[fold.val]), labels=classes) for model in fitted
    ]
    return fitted[int(np.argmin(losses))]
