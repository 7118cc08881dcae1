"""The plain baseline that every run is held against: the task's own simple model of a slide's mean patch.

It has the run's own folds: fitted on train, its strength chosen on val, judged on test. It takes seconds, needs no GPU,
and where averaging is enough it is hard to beat.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold


def slide_means(cohort: Cohort) -> NDArray[np.float64]:
    """(S, D), the mean patch of each bag."""
    return cohort.moments[0]


def baseline_predictions(cohort: Cohort, folds: Sequence[Fold], vectors: NDArray[np.float64]) -> pd.DataFrame:
    """Out-of-fold answers for vectors (S, D): slide_id, patient_id, repeat, fold, label, the task's value columns."""
    task, targets, parts = cohort.task, cohort.targets, []
    for fold in folds:
        held_out = vectors[fold.val], targets[fold.val]
        answers = task.fit_baseline(vectors[fold.train], targets[fold.train], held_out)(vectors[fold.test])
        parts.append(answers_table(cohort, fold, answers))
    return pd.concat(parts, ignore_index=True)


def answers_table(cohort: Cohort, fold: Fold, answers: NDArray[np.float64]) -> pd.DataFrame:
    """answers (n, C) for the test slides of a fold, as a table."""
    return pd.DataFrame(
        {
            **cohort.named(fold.test),
            "repeat": fold.repeat,
            "fold": fold.fold,
            "label": [cohort.task.label(target) for target in cohort.targets[fold.test]],
            **dict(zip(cohort.task.value_columns, answers.T, strict=True)),
        }
    )
