"""From the checkpoints of a run to everything that is said about it: predictions, attention, metrics.

A slide is only ever judged by models that saw neither it nor its patient. With repeats it is judged once in each:
every row counts in the metrics, and its attention is the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.evaluation.baseline import baseline_predictions, slide_means
from mil.metrics.bootstrap import Bootstrap, draw_weights, interval
from mil.metrics.classification import by_fold, evaluate, macro_auroc, patch_accuracy
from mil.metrics.difference import auroc_difference
from mil.run.attention import attention_path, describe_attention, write_attention
from mil.run.checkpoint import read_checkpoint
from mil.run.ensemble import SlidePrediction, average, decide, load_head, predict_slide
from mil.run.novelty import describe_training_slides, write_training_slides
from mil.run.tables import write_metrics, write_predictions


def evaluate_run(cohort: Cohort, folds: Sequence[Fold], bootstrap: Bootstrap, device: torch.device, out: Path) -> None:
    """Read the checkpoints from disk and write all other results, metrics.json last."""
    checkpoints = {fold.number: read_checkpoint(out, fold.number) for fold in folds}
    heads = {number: load_head(checkpoint, device) for number, checkpoint in checkpoints.items()}
    rows = []
    for i in np.unique(np.concatenate([fold.test for fold in folds])):
        tested_in = [fold for fold in folds if i in fold.test]
        predictions = [
            predict_slide(heads[fold.number], cohort.features[i], device, checkpoints[fold.number].temperature)
            for fold in tested_in
        ]
        for fold, prediction in zip(tested_in, predictions, strict=True):
            rows.append(_row(cohort, i, fold, prediction, checkpoints[fold.number].threshold))
        mean = average(predictions, cohort.positive)
        attention = describe_attention(
            cohort.infos[i],
            cohort.coords_l0[i],
            attention=mean.attention,
            patch_logits=mean.patch_logits,
            class_attention=mean.class_attention,
            contributions=mean.contributions,
            probabilities=mean.probabilities,
            label=cohort.classes[cohort.labels[i]],
            classes=cohort.classes,
            positive=cohort.positive,
        )
        write_attention(attention_path(out, str(cohort.slide_ids[i])), attention)
    slides = pd.DataFrame(rows).sort_values(["repeat", "slide_id"], ignore_index=True)
    counts = slides[["correct_patches", "patches"]]
    slides = slides.drop(columns=list(counts.columns))
    thresholds = {(fold.repeat, fold.fold): checkpoints[fold.number].threshold for fold in folds}
    patients = _patients(slides, cohort, thresholds)
    write_predictions(out, slides, patients)
    means = slide_means(cohort)
    fingerprints = {i.slide_id: i.slide_fingerprint for i in cohort.infos if i.slide_fingerprint}
    write_training_slides(out, describe_training_slides(means, cohort.patient_ids), fingerprints)
    result = _metrics(cohort, slides, patients, folds, bootstrap)
    result["against_mean"] = _against_mean(cohort, slides, baseline_predictions(cohort, folds, means), bootstrap)
    if checkpoints[folds[0].number].head == "patch-label-copy":
        accuracy = patch_accuracy(
            slides["patient_id"].tolist(),
            counts["correct_patches"].to_numpy(),
            counts["patches"].to_numpy(),
            bootstrap.draws,
            bootstrap.seed,
        )
        result["patch"] = {"accuracy": accuracy}
    write_metrics(out, result)


def _row(cohort: Cohort, i: int, fold: Fold, prediction: SlidePrediction, threshold: float | None) -> dict[str, Any]:
    own_class = prediction.patch_logits.argmax(axis=1)  # (N,)
    return {
        "slide_id": cohort.slide_ids[i],
        "patient_id": cohort.patient_ids[i],
        "repeat": fold.repeat,
        "fold": fold.fold,
        "label": cohort.classes[cohort.labels[i]],
        "prediction": cohort.classes[decide(prediction.probabilities, cohort.positive, threshold)],
        **{f"prob_{c}": p for c, p in zip(cohort.classes, prediction.probabilities, strict=True)},
        "correct_patches": int((own_class == cohort.labels[i]).sum()),
        "patches": len(own_class),
    }


def _patients(slides: pd.DataFrame, cohort: Cohort, thresholds: Mapping[Any, float | None]) -> pd.DataFrame:
    """One row a patient and repeat: the mean of its slides' probabilities, decided by its fold's threshold.

    The label is empty if the patient's slides carry different ones.
    """
    columns = [f"prob_{name}" for name in cohort.classes]
    rows = []
    for (repeat, fold, patient), own in slides.groupby(["repeat", "fold", "patient_id"]):
        probabilities = own[columns].to_numpy().mean(axis=0)
        rows.append(
            {
                "patient_id": patient,
                "repeat": repeat,
                "fold": fold,
                "slides": len(own),
                "label": own["label"].iloc[0] if own["label"].nunique() == 1 else "",
                "prediction": cohort.classes[decide(probabilities, cohort.positive, thresholds[repeat, fold])],
                **dict(zip(columns, probabilities, strict=True)),
            }
        )
    return pd.DataFrame(rows).sort_values(["repeat", "patient_id"], ignore_index=True)


def _against_mean(cohort: Cohort, slides: pd.DataFrame, baseline: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """How the run's AUROC differs from the baseline's on the same slides, and the baseline's own."""
    choice = (cohort.classes, cohort.positive, bootstrap.draws, bootstrap.seed)
    labels = np.array([cohort.classes.index(name) for name in baseline["label"]])
    weights = draw_weights(baseline["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
    probabilities = baseline[[f"prob_{name}" for name in cohort.classes]].to_numpy(np.float64)
    own = interval(macro_auroc(probabilities, labels, weights, cohort.positive))
    return {**asdict(auroc_difference(slides, baseline, *choice)), "auroc": own}


def _metrics(
    cohort: Cohort, slides: pd.DataFrame, patients: pd.DataFrame, folds: Sequence[Fold], bootstrap: Bootstrap
) -> dict[str, Any]:
    choice = (cohort.classes, cohort.positive, bootstrap.draws, bootstrap.seed)
    once = slides[slides["repeat"] == 0]
    result: dict[str, Any] = {
        "slide": evaluate(slides, *choice),
        "counts": {
            "slides": len(once),
            "patients": once["patient_id"].nunique(),
            "slides_of_class": {name: int((once["label"] == name).sum()) for name in cohort.classes},
            "folds": len({fold.fold for fold in folds}),
            "repeats": len({fold.repeat for fold in folds}),
            "bootstrap_draws": bootstrap.draws,
        },
    }
    result["folds"] = by_fold(slides, *choice)
    mixed = sorted(set(patients.loc[patients["label"] == "", "patient_id"]))
    if mixed:
        reason = f"slides of one patient carry different labels ({len(mixed)} patients, {mixed[0]} among them)"
        return {**result, "patient": None, "patient_reason": reason}
    return {**result, "patient": evaluate(patients, *choice)}
