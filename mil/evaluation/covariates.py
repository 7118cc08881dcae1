"""What does the slide add to the columns of its table, and what do they add to it? Answered out of fold, on one split.

Beside the run's own models stand two: models of the same kind that are told of no columns, trained in the same way, and
the task's plain model of the columns alone. That one is, like a head, the mean of one model for each of a fold's
members: encoded and fitted on the member's training slides, its penalty chosen on those held out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.covariates import Covariates
from mil.cohort.splits import Fold
from mil.evaluation.baseline import answers_table
from mil.metrics.bootstrap import Bootstrap, Floats
from mil.run.checkpoint import read_checkpoint
from mil.run.ensemble import load_head, predict_slide
from mil.run.tables import write_alone


def against_alone(
    cohort: Cohort, folds: Sequence[Fold], slides: pd.DataFrame, bootstrap: Bootstrap, device: torch.device, out: Path
) -> dict[str, Any]:
    """For metrics.json: how the headline figure of `slides`, the run's predictions, differs from those of each alone.

    Both other tables are written too. Empty where the models are told of no columns.
    """
    if cohort.covariates is None:
        return {}
    tables = {
        "columns": columns_alone(cohort, cohort.covariates, folds),
        "slide": _slide_alone(cohort, folds, device, out),
    }
    for name, table in tables.items():
        write_alone(out, name, table)
    return {f"against_{name}": cohort.task.against(slides, table, bootstrap) for name, table in tables.items()}


def columns_alone(cohort: Cohort, covariates: Covariates, folds: Sequence[Fold]) -> pd.DataFrame:
    """Out-of-fold answers as a table: slide_id, patient_id, repeat, fold, label, the task's value columns."""
    task, targets, parts = cohort.task, cohort.targets, []
    for fold in folds:
        answers: list[Floats] = []
        for member in fold.members:
            vectors = covariates.encoded(member.train)
            held_out = vectors[member.val], targets[member.val]
            fitted = task.fit_baseline(vectors[member.train], targets[member.train], held_out)
            answers.append(fitted(vectors[fold.test]))
        parts.append(answers_table(cohort, fold, np.mean(answers, axis=0)))
    return pd.concat(parts, ignore_index=True)


def _slide_alone(cohort: Cohort, folds: Sequence[Fold], device: torch.device, out: Path) -> pd.DataFrame:
    parts = []
    for fold in folds:
        checkpoint = read_checkpoint(out, fold.number, alone=True)
        head, calibration = load_head(checkpoint, device), checkpoint.calibration
        said = [predict_slide(head, cohort.features[i], device, cohort.task, calibration) for i in fold.test]
        parts.append(answers_table(cohort, fold, np.stack([of.answer for of in said])))
    return pd.concat(parts, ignore_index=True)
