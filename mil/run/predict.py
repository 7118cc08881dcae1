"""What a run says of slides that it may never have seen.

A slide or patient that the run was trained on is judged by those models alone that did not see it, as in its
out-of-fold predictions; where all of them did, it is refused. Nobody gets a flattering prediction by mistake.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from features.feature_file import EmbeddingInfo, Embeddings
from features.interop.reader import FeatureFolder, open_features
from mil.run.ensemble import Ensemble, load_ensemble
from mil.run.novelty import TrainingSlides, read_training_slides
from mil.run.trained_on import TrainedOn, read_trained_on
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Lost, map_cluster


@dataclass(frozen=True)
class Predictions:
    """`table`: slide_id, prediction, the task's value columns, fold_spread, models, in_training, distance,
    unlike_training; one row a slide. `failures`: why other slides have none, by slide id."""

    table: pd.DataFrame
    failures: Mapping[str, str]
    models: int  # of the run


@dataclass(frozen=True)
class _Judge:
    """The models of a run, and what says which of them may judge a slide and whether it is like those they know."""

    ensemble: Ensemble
    trained_on: TrainedOn
    training: TrainingSlides | None
    patients: Mapping[str, str] = field(default_factory=dict)  # patient of each slide id, as far as the caller knows


@dataclass(frozen=True)
class _Request:
    """What makes a judge of slides, on any machine; equal where `token` is."""

    run: Path
    features: Path
    patients: Mapping[str, str] = field(compare=False)
    device: str
    prevalence: float
    threads: int  # of torch, on which rounding depends
    token: str  # a later request may find another run in the same folder

    def judge(self) -> _Judge:
        ensemble = load_ensemble(self.run, self.device)
        if self.prevalence:
            ensemble = _for_prevalence(ensemble, self.prevalence)
        return _Judge(ensemble, read_trained_on(self.run), read_training_slides(self.run)[0], self.patients)


def predict_folder(
    run: Path,
    features: Path,
    patients: Mapping[str, str],
    device: str = "auto",
    prevalence: float = 0.0,
    scheduler: str = "",
) -> Predictions:
    """Predictions of every feature file in `features`.

    patients: patient of each slide id, by which slides of the run's own patients are known too; may be empty.
    prevalence: share of the positive class where the slides come from; 0: as in training.
    scheduler: address of a Dask scheduler, whose workers do the slides.
    RequestError before any prediction for an unfinished run, a folder without feature files, or another encoder's.
    """
    token, threads = uuid.uuid4().hex, torch.get_num_threads()
    request = _Request(run.absolute(), features.absolute(), patients, device, prevalence, threads, token)
    judge, source = request.judge(), open_features(features)
    if not source.paths:
        raise RequestError(f"{features}: no feature file (*.h5) in this folder; make them with extract-features")
    if scheduler:
        found = _on_cluster(list(source.paths), request, judge, scheduler)
    else:
        found = {slide_id: _row_or_fault(judge, slide_id, source) for slide_id in source.paths}
    task = judge.ensemble.task
    columns = ["slide_id", "prediction", *task.value_columns, *task.further_columns, "fold_spread", "models"]
    rows = [found[slide_id] for slide_id in source.paths if not isinstance(found[slide_id], str)]
    table = pd.DataFrame(rows, columns=[*columns, "in_training", "distance", "unlike_training"])
    failures = {slide_id: fault for slide_id in source.paths if isinstance(fault := found[slide_id], str)}
    return Predictions(table, failures, len(judge.ensemble.heads))


def _on_cluster(
    slide_ids: Sequence[str], request: _Request, judge: _Judge, scheduler: str
) -> dict[str, dict[str, Any] | str]:
    """By slide id, the rows or why there is none."""
    gpu = judge.ensemble.device.type == "cuda"
    work = partial(_on_worker, request=replace(request, device=judge.ensemble.device.type))
    found: dict[str, dict[str, Any] | str] = {}
    with closing(map_cluster(work, slide_ids, scheduler, gpu)) as results:
        for slide_id, row in results:
            if isinstance(row, Lost) and row.stops:
                raise RequestError(row.reason)
            found[slide_id] = f"{slide_id}: {row.reason}" if isinstance(row, Lost) else row
    return found


def _on_worker(slide_id: str, request: _Request) -> dict[str, Any] | str:
    judge, source = _judge_of(request)
    return _row_or_fault(judge, slide_id, source)


@lru_cache(maxsize=1)
def _judge_of(request: _Request) -> tuple[_Judge, FeatureFolder]:
    torch.set_num_threads(request.threads)
    return request.judge(), open_features(request.features)


def _row_or_fault(judge: _Judge, slide_id: str, source: FeatureFolder) -> dict[str, Any] | str:
    try:
        return _row(judge, slide_id, source.read(slide_id))
    except SlideError as error:
        return str(error)


def _for_prevalence(ensemble: Ensemble, prevalence: float) -> Ensemble:
    try:
        moved = tuple(ensemble.task.for_prevalence(c, prevalence) for c in ensemble.calibrations)
    except ValueError as error:
        raise RequestError(f"--prevalence {prevalence:g}: {error}") from error
    return replace(ensemble, calibrations=moved)


def _row(judge: _Judge, slide_id: str, embeddings: Embeddings) -> dict[str, Any]:
    known, models = _allowed(judge, embeddings.info, judge.patients.get(slide_id, ""))
    prediction = judge.ensemble.predict(embeddings, models)
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
