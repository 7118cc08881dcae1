"""What trained models say about a slide: the mean over the folds of a run.

A slide or patient that the run was trained on is judged by those models alone that did not see it, as in its
out-of-fold predictions; where all of them did, it is refused. Nobody gets a flattering prediction by mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from features.device import pick_device
from features.feature_file import EmbeddingInfo, Embeddings
from features.interop.reader import open_features
from mil.cohort.cohort import SCALE_RATIO, encoder_identity, in_float16
from mil.heads.bags import pack
from mil.heads.head import Head, HeadShape
from mil.heads.registry import build_head
from mil.run.checkpoint import Checkpoint, fold_numbers, read_checkpoint
from mil.run.layout import require_complete
from mil.run.novelty import TrainingSlides
from mil.run.trained_on import TrainedOn
from mil.tasks.temperature import calibrated
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import RequestError, SlideError

_MUST_AGREE = ("encoder", "weights_sha256", "input_px", "normalisation", "dim")


@dataclass(frozen=True)
class SlidePrediction:
    """The mean over models for one slide of N patches and C classes."""

    probabilities: NDArray[np.float64]  # (C,)
    attention: NDArray[np.float32]  # (N,), sums to 1
    patch_logits: NDArray[np.float32]  # (N, C)
    spread: float  # standard deviation over models of the probability of the positive (else: predicted) class
    class_attention: NDArray[np.float32] | None = None  # (N, C), where the head has one a class
    contributions: NDArray[np.float32] | None = None  # (N, C), where the head's logits are a sum over patches


@dataclass(frozen=True)
class Ensemble:
    """The models of all folds and repeats of one run, in evaluation mode on `device`."""

    heads: tuple[Head, ...]
    classes: tuple[str, ...]
    positive: int | None
    temperatures: tuple[float, ...]  # of each model
    thresholds: tuple[float | None, ...]  # of each model; None unless there are two classes
    encoder: Mapping[str, Any]  # identity of the features it was trained on
    device: torch.device

    def predict(self, embeddings: Embeddings, models: Sequence[int] | None = None) -> SlidePrediction:
        """The mean over all models, or over those at the positions `models`.

        RequestError for features of another encoder; SlideError for a slide without patches.
        """
        self.require_encoder(embeddings.info, embeddings.features.shape[1])
        _require_scale(self.encoder.get("mpp"), embeddings.info)
        if not len(embeddings.features):
            raise SlideError(f"{embeddings.info.slide_id}: no patches, so there is nothing to predict from")
        features = torch.from_numpy(in_float16(embeddings).features)
        chosen = range(len(self.heads)) if models is None else models
        each = [predict_slide(self.heads[m], features, self.device, self.temperatures[m]) for m in chosen]
        return average(each, self.positive)

    def decide(self, probabilities: NDArray[np.float64], models: Sequence[int] | None = None) -> str:
        """The predicted class for probabilities (C,), by the mean threshold of the models that gave them."""
        thresholds = [t for m, t in enumerate(self.thresholds) if t is not None and (models is None or m in models)]
        return self.classes[decide(probabilities, self.positive, float(np.mean(thresholds)) if thresholds else None)]

    def require_encoder(self, info: EmbeddingInfo, dim: int) -> None:
        """Raise RequestError naming what differs from the features that the run was trained on."""
        found = encoder_identity(info, dim)
        differing = [
            f"{k} {found[k]!r} instead of {self.encoder[k]!r}" for k in _MUST_AGREE if found[k] != self.encoder[k]
        ]
        if differing:
            raise RequestError(
                f"{info.slide_id}: these features are not of the kind the run was trained on "
                f"({', '.join(differing)}); extract them with the same encoder"
            )


def _require_scale(trained: float | None, info: EmbeddingInfo) -> None:
    """Raise SlideError where patches were cut at another µm per pixel than those the run was trained on."""
    if trained is None or not np.isfinite(info.mpp):
        return
    if max(trained, info.mpp) > SCALE_RATIO * min(trained, info.mpp):
        raise SlideError(
            f"{info.slide_id}: its patches have {info.mpp:.3g} µm per pixel, the run was trained at {trained:.3g}; "
            f"tile the slide with --mpp {trained:.3g}"
        )


def load_ensemble(run: Path, device: str = "auto") -> Ensemble:
    """The models of a finished run. RequestError if it is unfinished, damaged or of another version."""
    provenance = require_complete(run)
    checkpoints = [read_checkpoint(run, number) for number in fold_numbers(run)]
    place = pick_device(device)
    return Ensemble(
        heads=tuple(load_head(checkpoint, place) for checkpoint in checkpoints),
        classes=checkpoints[0].classes,
        positive=checkpoints[0].positive,
        temperatures=tuple(checkpoint.temperature for checkpoint in checkpoints),
        thresholds=tuple(checkpoint.threshold for checkpoint in checkpoints),
        encoder=provenance["features"],
        device=place,
    )


def load_head(checkpoint: Checkpoint, device: torch.device) -> Head:
    head = build_head(checkpoint.head, HeadShape(**checkpoint.shape))
    head.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()})
    return head.to(device).eval()


@torch.no_grad()
def predict_slide(
    head: Head, features: torch.Tensor, device: torch.device, temperature: float = 1.0
) -> SlidePrediction:
    """One model, one slide; features (N, D) with N >= 1. The probabilities are calibrated by the temperature."""
    output = head(pack([features]).to(device))
    return SlidePrediction(
        probabilities=calibrated(output.logits[0].double().softmax(0).cpu().numpy(), temperature),
        attention=output.attention.float().cpu().numpy(),
        patch_logits=output.patch_logits.float().cpu().numpy(),
        spread=0.0,
        class_attention=None if output.class_attention is None else output.class_attention.float().cpu().numpy(),
        contributions=None if output.contributions is None else output.contributions.float().cpu().numpy(),
    )


def average(predictions: Sequence[SlidePrediction], positive: int | None) -> SlidePrediction:
    """The mean over models, and their spread. With an attention per class, `attention` is the predicted class's."""
    each = np.stack([p.probabilities for p in predictions])  # (models, C)
    probabilities = each.mean(axis=0)
    watched = int(probabilities.argmax()) if positive is None else positive
    class_attention = _mean_or_none([p.class_attention for p in predictions])
    return SlidePrediction(
        probabilities=probabilities,
        attention=(
            _mean([p.attention for p in predictions])
            if class_attention is None
            else class_attention[:, int(probabilities.argmax())]
        ),
        patch_logits=_mean([p.patch_logits for p in predictions]),
        spread=float(each[:, watched].std()),
        class_attention=class_attention,
        contributions=_mean_or_none([p.contributions for p in predictions]),
    )


def decide(probabilities: NDArray[np.float64], positive: int | None, threshold: float | None) -> int:
    """Index of the predicted class: by threshold for two classes, else the most probable."""
    if positive is None or threshold is None:
        return int(probabilities.argmax())
    return positive if probabilities[positive] >= threshold else 1 - positive


def predict_folder(
    ensemble: Ensemble,
    folder: Path,
    trained_on: TrainedOn | None = None,
    training: TrainingSlides | None = None,
    patients: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predictions of every feature file in `folder` by slide id, and why some have none (slide id: reason).

    patients: patient of each slide id, by which slides of the run's own patients are known too.
    Raises RequestError before any prediction if the folder has no feature file or features of another encoder.
    """
    source = open_features(folder)
    if not source.paths:
        raise RequestError(f"{folder}: no feature file (*.h5) in this folder; make them with extract-features")
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for slide_id in source.paths:
        try:
            embeddings = source.read(slide_id)
            known, models = _allowed(
                embeddings.info, len(ensemble.heads), trained_on, (patients or {}).get(slide_id, "")
            )
            prediction = ensemble.predict(embeddings, models)
        except SlideError as error:
            failures[slide_id] = str(error)
            continue
        rows.append(
            {
                "slide_id": slide_id,
                "prediction": ensemble.decide(prediction.probabilities, models),
                **{f"prob_{c}": p for c, p in zip(ensemble.classes, prediction.probabilities, strict=True)},
                "fold_spread": prediction.spread,
                "models": len(models),
                "in_training": known,
                **_novelty(training, embeddings),
            }
        )
    columns = ["slide_id", "prediction", *(f"prob_{name}" for name in ensemble.classes), "fold_spread", "models"]
    return pd.DataFrame(rows, columns=[*columns, "in_training", "distance", "unlike_training"]), failures


def _allowed(info: EmbeddingInfo, models: int, trained_on: TrainedOn | None, patient: str) -> tuple[bool, list[int]]:
    """Whether the slide or its patient taught the run, and the models that did not see it. SlideError if none."""
    if trained_on is None:
        return False, list(range(models))
    known = trained_on.patient(info.slide_id, info.slide_fingerprint, patient)
    unseen = trained_on.unseen_by(known)
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


def write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.stack(arrays).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _mean_or_none(arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    present = [array for array in arrays if array is not None]
    return _mean(present) if len(present) == len(arrays) else None
