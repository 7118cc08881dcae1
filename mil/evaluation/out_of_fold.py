"""From the checkpoints of a run to everything that is said about it: predictions, attention, metrics.

A slide is only ever judged by models that saw neither it nor its patient. With repeats it is judged once in each:
every row counts in the metrics, and its attention is the mean.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import ID_SEPARATOR, Cohort
from mil.cohort.splits import Fold
from mil.evaluation.baseline import baseline_predictions, slide_means
from mil.evaluation.covariates import against_alone
from mil.metrics.bootstrap import Bootstrap
from mil.metrics.classification import patch_accuracy
from mil.run.attention import SlidePrediction, attention_path, describe_bag, write_attention
from mil.run.checkpoint import Checkpoint, read_checkpoint
from mil.run.ensemble import average, load_head, predict_slide
from mil.run.novelty import describe_training_slides, write_training_slides
from mil.run.tables import write_metrics, write_predictions
from mil.tasks.task import Task

_COPIED = "patch-label-copy"  # whose patches are judged too, against the labels that they were given


def evaluate_run(cohort: Cohort, folds: Sequence[Fold], bootstrap: Bootstrap, device: torch.device, out: Path) -> None:
    """Read the checkpoints from disk and write all other results, metrics.json last."""
    checkpoints = {fold.number: read_checkpoint(out, fold.number) for fold in folds}
    heads = {number: load_head(checkpoint, device) for number, checkpoint in checkpoints.items()}
    task, rows = cohort.task, []
    for i in np.unique(np.concatenate([fold.test for fold in folds])):
        tested_in = [fold for fold in folds if i in fold.test]
        told = None if cohort.covariates is None else cohort.covariates.values[i]
        predictions = [
            predict_slide(heads[f.number], cohort.features[i], device, task, checkpoints[f.number].calibration, told)
            for f in tested_in
        ]
        for fold, prediction in zip(tested_in, predictions, strict=True):
            rows.append(_row(cohort, i, fold, prediction, checkpoints[fold.number]))
        _write_attention(out, cohort, i, average(predictions, task))
    slides = pd.DataFrame(rows)
    slides = slides.sort_values(["repeat", slides.columns[0]], ignore_index=True)
    counts = slides[["correct_patches", "patches"]]
    slides = slides.drop(columns=list(counts.columns))
    patients = _patients(slides, cohort, {(f.repeat, f.fold): checkpoints[f.number] for f in folds})
    write_predictions(out, slides, patients)
    means = slide_means(cohort)
    fingerprints = {i.slide_id: i.slide_fingerprint for i in cohort.infos if i.slide_fingerprint}
    write_training_slides(out, describe_training_slides(means, cohort.patient_ids), fingerprints)
    result = _metrics(cohort, slides, patients, bootstrap)
    if weights := [c.weights for c in checkpoints.values() if c.weights]:
        result["heads"] = {name: float(np.mean([of[name] for of in weights])) for name in weights[0]}
    result["against_mean"] = task.against(slides, baseline_predictions(cohort, folds, means), bootstrap)
    result |= against_alone(cohort, folds, slides, bootstrap, device, out)
    if checkpoints[folds[0].number].head == _COPIED:
        correct, of = counts["correct_patches"].to_numpy(), counts["patches"].to_numpy()
        accuracy = patch_accuracy(slides["patient_id"].tolist(), correct, of, bootstrap.draws, bootstrap.seed)
        result["patch"] = {"accuracy": accuracy}
    write_metrics(out, result)


def _write_attention(out: Path, cohort: Cohort, bag: int, mean: SlidePrediction) -> None:
    """A file for each slide of the bag."""
    slides = [(cohort.infos[i], cohort.coords_l0[i]) for i in cohort.slides_of(bag)]
    patient = str(cohort.patient_ids[bag]) if cohort.of_patients else ""
    for slide in describe_bag(slides, mean, cohort.task, cohort.task.label(cohort.targets[bag]), patient):
        write_attention(attention_path(out, slide.slide_id), slide)


def _row(cohort: Cohort, i: int, fold: Fold, prediction: SlidePrediction, checkpoint: Checkpoint) -> dict[str, Any]:
    own_output = prediction.patch_logits.argmax(axis=1)  # (N,)
    return {
        **{name: values[0] for name, values in cohort.named(np.array([i])).items()},
        "repeat": fold.repeat,
        "fold": fold.fold,
        **cohort.task.label_columns(cohort.task.label(cohort.targets[i])),
        **cohort.task.columns(prediction.answer, checkpoint.calibration),
        "correct_patches": int((own_output == cohort.targets[i]).sum()) if checkpoint.head == _COPIED else 0,
        "patches": len(own_output),
    }


def _patients(slides: pd.DataFrame, cohort: Cohort, models: Mapping[Any, Checkpoint]) -> pd.DataFrame:
    """One row a patient and repeat: the mean of its slides' answers, put into words as its fold does.

    models: by repeat and fold. The label is empty if the patient's slides carry different ones.
    """
    columns, rows = list(cohort.task.value_columns), []
    ids_column = "slide_ids" if cohort.of_patients else "slide_id"
    for (repeat, fold, patient), own in slides.groupby(["repeat", "fold", "patient_id"]):
        answer = own[columns].to_numpy().mean(axis=0)
        rows.append(
            {
                "patient_id": patient,
                "repeat": repeat,
                "fold": fold,
                "slides": sum(len(ids.split(ID_SEPARATOR)) for ids in own[ids_column]),
                **cohort.task.label_columns(cohort.task.joint_label(own["label"].tolist())),
                **cohort.task.columns(answer, models[repeat, fold].calibration),
            }
        )
    return pd.DataFrame(rows).sort_values(["repeat", "patient_id"], ignore_index=True)


def _metrics(cohort: Cohort, slides: pd.DataFrame, patients: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    task, once = cohort.task, slides[slides["repeat"] == 0]
    result: dict[str, Any] = {
        "slide": None if cohort.of_patients else task.evaluate(slides, bootstrap),
        "counts": {
            "slides": int(patients.loc[patients["repeat"] == 0, "slides"].sum()),
            "patients": once["patient_id"].nunique(),
            **task.counts(once),
            "folds": slides["fold"].nunique(),
            "repeats": slides["repeat"].nunique(),
            "bootstrap_draws": bootstrap.draws,
        },
        "folds": by_fold(task, slides, bootstrap),
    }
    if (found := task.found(slides)) is not None:
        result["found"] = found
    mixed = sorted(set(patients.loc[patients["label"] == "", "patient_id"]))
    if mixed:
        reason = f"slides of one patient carry different labels ({len(mixed)} patients, {mixed[0]} among them)"
        return {**result, "patient": None, "patient_reason": reason}
    return {**result, "patient": task.evaluate(patients, bootstrap)}


def by_fold(task: Task, slides: pd.DataFrame, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The overall figures of each repeat and fold alone, not those by class."""
    results = []
    for repeat, fold in sorted(set(zip(slides["repeat"], slides["fold"], strict=True))):
        own = slides[(slides["repeat"] == repeat) & (slides["fold"] == fold)]
        figures = task.evaluate(own, bootstrap)
        overall = {name: value for name, value in figures.items() if "value" in value}
        results.append({"repeat": int(repeat), "fold": int(fold), "rows": len(own), **overall})
    return results
