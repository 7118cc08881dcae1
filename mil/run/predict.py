"""What a run says of slides that it may never have seen.

A slide or patient that the run was trained on is judged by those models alone that did not see it, as in its
out-of-fold predictions; where all of them did, it is refused. Nobody gets a flattering prediction by mistake.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
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
from mil.cohort.cohort import ID_SEPARATOR
from mil.cohort.patients import with_patients_labels
from mil.run.ensemble import Ensemble, Values, load_ensemble
from mil.run.layout import bags_of
from mil.run.novelty import TrainingSlides, read_training_slides
from mil.run.trained_on import TrainedOn, read_trained_on
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Lost, map_cluster
from tiling.manifest import SlideRow


@dataclass(frozen=True)
class Predictions:
    """`table`: slide_id, prediction, the task's value columns, fold_spread, models, in_training, distance,
    unlike_training; one row a slide. Where patients are the bags: one a patient, with patient_id and slide_ids in the
    place of slide_id. `failures`: why other slides have none, by slide id. `warnings`: what to know of the slides'
    columns, one sentence each."""

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


@dataclass(frozen=True)
class _Bag:
    slide_ids: tuple[str, ...]
    patient: str = ""  # whose slides these are; empty where the bag is one slide


@dataclass(frozen=True)
class _Said:
    """Of one bag."""

    row: dict[str, Any] | None  # of the table
    failures: dict[str, str]  # why slides are not in it


@dataclass(frozen=True)
class _Request:
    """What makes a judge of slides, on any machine; equal where `token` is."""

    run: Path
    features: Path
    slides: Sequence[SlideRow] = field(compare=False)
    device: str
    prevalence: float
    threads: int  # of torch, on which rounding depends
    token: str  # a later request may find another run in the same folder

    def judge(self) -> tuple[_Judge, list[str]]:
        """With what to know of the columns that it is told of."""
        ensemble = load_ensemble(self.run, self.device)
        if self.prevalence:
            ensemble = _for_prevalence(ensemble, self.prevalence)
        covariates, warnings = _told(ensemble, self.slides, bags_of(self.run) == "patient")
        rows = {row.slide_id: row for row in self.slides}
        training = read_training_slides(self.run)[0]
        return _Judge(ensemble, read_trained_on(self.run), training, rows, covariates), warnings


def predict_folder(
    run: Path,
    features: Path,
    slides: Sequence[SlideRow],
    device: str = "auto",
    prevalence: float = 0.0,
    scheduler: str = "",
) -> Predictions:
    """Predictions of every feature file in `features`, or of the patients whose slides they are where these are bags.

    slides: rows of a slide table, by whose patients slides of the run's own patients are known too, and with the
        columns that the run was told of; may be empty for a run that was told of none, unless patients are its bags
        and new ones are to be judged.
    prevalence: share of the positive class where the slides come from; 0: as in training.
    scheduler: address of a Dask scheduler, whose workers do the bags.
    RequestError before any prediction for an unfinished run, a folder without feature files, another encoder's, or
    a table without the columns.
    """
    token, threads = uuid.uuid4().hex, torch.get_num_threads()
    request = _Request(run.absolute(), features.absolute(), slides, device, prevalence, threads, token)
    (judge, warnings), source = request.judge(), open_features(features)
    if not source.paths:
        lacking = "no feature file (*.h5) in this folder" if features.is_dir() else "no such folder of feature files"
        raise RequestError(f"{features}: {lacking}; make them with extract-features")
    of_patients = bags_of(run) == "patient"
    bags, failures = _patients(judge, source.paths) if of_patients else ([_Bag((i,)) for i in source.paths], {})
    found = _on_cluster(bags, request, judge, scheduler) if scheduler else [_said(judge, bag, source) for bag in bags]
    rows = [said.row for said in found if said.row]
    for said in found:
        failures |= said.failures
    task, ids = judge.ensemble.task, ["patient_id", "slide_ids"] if of_patients else ["slide_id"]
    columns = [*ids, "prediction", *task.value_columns, *task.further_columns, "fold_spread", "models"]
    table = pd.DataFrame(rows, columns=[*columns, "in_training", "distance", "unlike_training"])
    return Predictions(table, failures, len(judge.ensemble.heads), tuple(warnings))


def _told(ensemble: Ensemble, slides: Sequence[SlideRow], of_patients: bool) -> tuple[dict[str, Values], list[str]]:
    """What models that are told of columns are told, by slide id, and what to know of it."""
    if (columns := ensemble.columns_told) is None:
        return {}, []
    if not slides:
        raise RequestError(
            f"the run was trained with the columns {', '.join(columns.names)}; give the slide table that has them "
            "(--slides TABLE)"
        )
    if of_patients:
        slides = with_patients_labels(slides, (), columns.names, "the slide table")
    values, warnings = columns.read(slides)
    return dict(zip((row.slide_id for row in slides), values, strict=True)), warnings


def _on_cluster(bags: Sequence[_Bag], request: _Request, judge: _Judge, scheduler: str) -> list[_Said]:
    """In the order of the bags."""
    gpu = judge.ensemble.device.type == "cuda"
    work = partial(_on_worker, request=replace(request, device=judge.ensemble.device.type))
    found: dict[_Bag, _Said] = {}
    with closing(map_cluster(work, bags, scheduler, gpu)) as results:
        for bag, said in results:
            if isinstance(said, Lost):
                if said.stops:
                    raise RequestError(said.reason)
                said = _Said(None, {i: f"{i}: {said.reason}" for i in bag.slide_ids})
            found[bag] = said
    return [found[bag] for bag in bags]


def _on_worker(bag: _Bag, request: _Request) -> _Said:
    judge, source = _judge_of(request)
    return _said(judge, bag, source)


@lru_cache(maxsize=1)
def _judge_of(request: _Request) -> tuple[_Judge, FeatureFolder]:
    torch.set_num_threads(request.threads)
    return request.judge()[0], open_features(request.features)


def _said(judge: _Judge, bag: _Bag, source: FeatureFolder) -> _Said:
    slides: dict[str, Embeddings] = {}
    failures = {}
    for slide_id in bag.slide_ids:
        try:
            slides[slide_id] = judge.ensemble.require_usable(source.read(slide_id))
        except SlideError as error:
            failures[slide_id] = str(error)
    if not slides:
        return _Said(None, failures)
    whose = {"patient_id": bag.patient, "slide_ids": ID_SEPARATOR.join(slides)}
    try:
        return _Said({**(whose if bag.patient else {"slide_id": next(iter(slides))}), **_row(judge, slides)}, failures)
    except SlideError as error:
        return _Said(None, failures | dict.fromkeys(slides, str(error)))


def _for_prevalence(ensemble: Ensemble, prevalence: float) -> Ensemble:
    try:
        moved = tuple(ensemble.task.for_prevalence(c, prevalence) for c in ensemble.calibrations)
    except ValueError as error:
        raise RequestError(f"--prevalence {prevalence:g}: {error}") from error
    return replace(ensemble, calibrations=moved)


def _patients(judge: _Judge, present: Collection[str]) -> tuple[list[_Bag], dict[str, str]]:
    """The bag of each patient of whom a slide is present, and why others are in none. RequestError where none is."""
    patients = {**judge.trained_on.patient_of, **{name: row.patient_id for name, row in judge.rows.items()}}
    here = {patients[slide_id] for slide_id in present if slide_id in patients}
    if not here:
        raise RequestError(
            "all slides of a patient are one bag in this run, and nobody says whose these slides are; give a slide "
            "table with slide_id and patient_id (--slides)"
        )
    bags: dict[str, list[str]] = {}
    failures = {i: f"{i}: its patient is not known; name it in --slides" for i in present if i not in patients}
    for slide_id, patient in sorted(patients.items()):
        if patient in here and slide_id in present:
            bags.setdefault(patient, []).append(slide_id)
        elif patient in here:
            failures[slide_id] = f"{slide_id}: no feature file; the patient {patient} is judged without it"
    return [_Bag(tuple(slide_ids), patient) for patient, slide_ids in sorted(bags.items())], failures


def _row(judge: _Judge, slides: Mapping[str, Embeddings]) -> dict[str, Any]:
    """slides: of one bag, by their ids."""
    known, models = _allowed(judge, {slide_id: embeddings.info for slide_id, embeddings in slides.items()})
    first = next(iter(slides))
    if judge.covariates and first not in judge.rows:
        raise SlideError(f"{first}: not in the slide table, so its columns are not known; add a row")
    covariates = judge.covariates.get(first)
    prediction = judge.ensemble.predict(*slides.values(), models=models, covariates=covariates)
    return {
        **judge.ensemble.columns(prediction.answer, models),
        "fold_spread": prediction.spread,
        "models": len(models),
        "in_training": known,
        **_novelty(judge.training, list(slides.values())),
    }


def _allowed(judge: _Judge, infos: Mapping[str, EmbeddingInfo]) -> tuple[bool, list[int]]:
    """Whether the slides or their patient taught the run, and the models that saw none. SlideError if all did."""
    of, whose = judge.trained_on, {name: row.patient_id for name, row in judge.rows.items() if name in infos}
    patients = {of.patient(info.slide_id, info.slide_fingerprint, whose.get(i, "")) for i, info in infos.items()}
    unseen = sorted(set.intersection(*(set(of.unseen_by(patient)) for patient in patients)))
    known = ", ".join(sorted(patients - {""}))
    if not unseen:
        raise SlideError(
            f"{next(iter(infos))}: all models of the run were trained on this slide or its patient {known}, "
            "so a prediction would look better than it is"
        )
    return bool(known), unseen


def _novelty(training: TrainingSlides | None, slides: Sequence[Embeddings]) -> dict[str, Any]:
    """How far the bag's mean embedding is from the training slides', 1 being the limit; empty if not known."""
    if training is None:
        return {"distance": None, "unlike_training": None}
    features = np.concatenate([embeddings.features for embeddings in slides])
    distance = training.distance(features.mean(axis=0, dtype=np.float64))
    return {"distance": distance, "unlike_training": distance > 1}
