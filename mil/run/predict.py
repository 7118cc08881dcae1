"""What a run says of slides that it may never have seen.

A slide or patient that the run was trained on is judged by those models alone that did not see it, as in its
out-of-fold predictions; where all of them did, it is refused. Nobody gets a flattering prediction by mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.feature_file import EmbeddingInfo, Embeddings
from features.interop.reader import open_features
from mil.run.ensemble import Ensemble, Values, load_ensemble
from mil.run.novelty import TrainingSlides, read_training_slides
from mil.run.trained_on import TrainedOn, read_trained_on
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow


@dataclass(frozen=True)
class Predictions:
    """`table`: slide_id, prediction, the task's value columns, fold_spread, models, in_training, distance,
    unlike_training; one row a slide. `failures`: why other slides have none, by slide id. `warnings`: what to know of
    the slides' columns, one sentence each."""

    table: pd.DataFrame
    failures: Mapping[str, str]
    models: int  # of the run
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Judge:
    """The models of a run, and what says which of them may judge a slide and whether it is like those they know."""

    ensemble: Ensemble
    trained_on: TrainedOn
    training: TrainingSlides | None
    rows: Mapping[str, SlideRow]  # by slide id, as far as the caller knows
    covariates: Mapping[str, Values]  # (K,) of each slide id, for models that are told of columns


def predict_folder(
    run: Path, features: Path, slides: Sequence[SlideRow], device: str = "auto", prevalence: float = 0.0
) -> Predictions:
    """Predictions of every feature file in `features`.

    slides: rows of a slide table, by whose patients slides of the run's own patients are known too, and with the
        columns that the run was told of; may be empty for a run that was told of none.
    prevalence: share of the positive class where the slides come from; 0: as in training.
    RequestError before any prediction for an unfinished run, a folder without feature files, another encoder's, or
    a table without the columns.
    """
    ensemble = _for_prevalence(load_ensemble(run, device), prevalence) if prevalence else load_ensemble(run, device)
    covariates, warnings = _told(ensemble, slides)
    rows_of = {row.slide_id: row for row in slides}
    judge = _Judge(ensemble, read_trained_on(run), read_training_slides(run)[0], rows_of, covariates)
    source = open_features(features)
    if not source.paths:
        raise RequestError(f"{features}: no feature file (*.h5) in this folder; make them with extract-features")
    rows, failures = [], {}
    for slide_id in source.paths:
        try:
            rows.append(_row(judge, slide_id, source.read(slide_id)))
        except SlideError as error:
            failures[slide_id] = str(error)
    task = judge.ensemble.task
    columns = ["slide_id", "prediction", *task.value_columns, *task.further_columns, "fold_spread", "models"]
    table = pd.DataFrame(rows, columns=[*columns, "in_training", "distance", "unlike_training"])
    return Predictions(table, failures, len(judge.ensemble.heads), tuple(warnings))


def _told(ensemble: Ensemble, slides: Sequence[SlideRow]) -> tuple[dict[str, Values], list[str]]:
    """What models that are told of columns are told, by slide id, and what to know of it."""
    if (columns := ensemble.columns_told) is None:
        return {}, []
    if not slides:
        raise RequestError(
            f"the run was trained with the columns {', '.join(columns.names)}; give the slide table that has them "
            "(--slides TABLE)"
        )
    values, warnings = columns.read(slides)
    return dict(zip((row.slide_id for row in slides), values, strict=True)), warnings


def _for_prevalence(ensemble: Ensemble, prevalence: float) -> Ensemble:
    try:
        moved = tuple(ensemble.task.for_prevalence(c, prevalence) for c in ensemble.calibrations)
    except ValueError as error:
        raise RequestError(f"--prevalence {prevalence:g}: {error}") from error
    return replace(ensemble, calibrations=moved)


def _row(judge: _Judge, slide_id: str, embeddings: Embeddings) -> dict[str, Any]:
    row = judge.rows.get(slide_id)
    known, models = _allowed(judge, embeddings.info, row.patient_id if row else "")
    if judge.covariates and not row:
        raise SlideError(f"{slide_id}: not in the slide table, so its columns are not known; add a row")
    prediction = judge.ensemble.predict(embeddings, models, judge.covariates.get(slide_id))
    return {
        "slide_id": slide_id,
        **judge.ensemble.columns(prediction.answer, models),
        "fold_spread": prediction.spread,
        "models": len(models),
        "in_training": known,
        **_novelty(judge.training, embeddings),
    }


def _allowed(judge: _Judge, info: EmbeddingInfo, patient: str) -> tuple[bool, list[int]]:
    """Whether the slide or its patient taught the run, and the models that did not see it. SlideError if none."""
    known = judge.trained_on.patient(info.slide_id, info.slide_fingerprint, patient)
    unseen = judge.trained_on.unseen_by(known)
    if not unseen:
        raise SlideError(
            f"{info.slide_id}: all models of the run were trained on this slide or its patient {known}, "
            "so a prediction would look better than it is"
        )
    return bool(known), unseen


def _novelty(training: TrainingSlides | None, embeddings: Embeddings) -> dict[str, Any]:
    """How far the slide's mean embedding is from the training slides', 1 being the limit; empty if not known."""
    if training is None:
        return {"distance": None, "unlike_training": None}
    distance = training.distance(embeddings.features.mean(axis=0, dtype=np.float64))
    return {"distance": distance, "unlike_training": distance > 1}
