"""What trained models say about a slide: the mean over the folds of a run.

A slide or patient that the run was trained on is judged by those models alone that did not see it, as in its
out-of-fold predictions; where all of them did, it is refused. Nobody gets a flattering prediction by mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features.embed.device import pick_device
from features.feature_file import EmbeddingInfo, Embeddings
from mil.cohort.cohort import SCALE_RATIO, encoder_identity, in_float16
from mil.cohort.covariates import Columns
from mil.heads.bags import pack
from mil.heads.committee import Committee
from mil.heads.head import Head, HeadShape
from mil.heads.registry import build_head
from mil.run.attention import SlidePrediction
from mil.run.checkpoint import Checkpoint, fold_numbers, read_checkpoint
from mil.run.layout import require_complete
from mil.tasks.task import Calibration, Task
from tiling.jobs.errors import RequestError, SlideError

Values = NDArray[np.float64]
_MUST_AGREE = ("encoder", "weights_sha256", "input_px", "normalisation", "dim")


@dataclass(frozen=True)
class Ensemble:
    """The models of all folds and repeats of one run, in evaluation mode on `device`."""

    heads: tuple[Head, ...]
    task: Task
    calibrations: tuple[Calibration, ...]  # of each model
    encoder: Mapping[str, Any]  # identity of the features it was trained on
    device: torch.device
    columns_told: Columns | None = None  # of the slide table, that the models are told of

    def require_usable(self, embeddings: Embeddings) -> Embeddings:
        """The same. RequestError for features of another encoder; SlideError for no patches, or another scale."""
        self.require_encoder(embeddings.info, embeddings.features.shape[1])
        _require_scale(self.encoder.get("mpp"), embeddings.info)
        if not len(embeddings.features):
            raise SlideError(f"{embeddings.info.slide_id}: no patches, so there is nothing to predict from")
        return embeddings

    def predict(
        self, *bag: Embeddings, models: Sequence[int] | None = None, covariates: Values | None = None
    ) -> SlidePrediction:
        """The mean over all models, or over those at the positions `models`, for the slides of a bag.

        covariates: (K,) of the bag.

        Raises what `require_usable` does.
        """
        slides = [torch.from_numpy(in_float16(self.require_usable(embeddings)).features) for embeddings in bag]
        features = torch.cat(slides) if len(slides) > 1 else slides[0]
        chosen = range(len(self.heads)) if models is None else models
        return average([self.ask(m, features, covariates) for m in chosen], self.task)

    def ask(self, model: int, features: torch.Tensor, covariates: Values | None = None) -> SlidePrediction:
        """One model, one slide; features (N, D) with N >= 1, covariates (K,)."""
        head, calibration = self.heads[model], self.calibrations[model]
        return predict_slide(head, features, self.device, self.task, calibration, covariates)

    def columns(self, answer: NDArray[np.float64], models: Sequence[int]) -> dict[str, Any]:
        """What tables say of the mean answer (C,) of these models."""
        return self.task.columns(answer, self.task.shared([self.calibrations[m] for m in models]))

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
        task=checkpoints[0].task,
        calibrations=tuple(checkpoint.calibration for checkpoint in checkpoints),
        encoder=provenance["features"],
        device=place,
        columns_told=Columns.restored(told) if (told := provenance.get("covariates")) else None,
    )


def load_head(checkpoint: Checkpoint, device: torch.device) -> Head:
    with torch.random.fork_rng(devices=[]):  # weights are drawn and replaced
        shape = HeadShape(**checkpoint.shape)
        heads = [build_head(name, shape) for name in checkpoint.members]
    head = heads[0] if len(heads) == 1 else Committee(heads, shape.n_classes)
    try:
        head.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()})
    except (RuntimeError, KeyError) as error:
        raise RequestError(
            f"a model of --head {checkpoint.head} was trained by a recipe that this release no longer has; train again"
        ) from error
    return head.to(device).eval()


@torch.no_grad()
def predict_slide(
    head: Head,
    features: torch.Tensor,
    device: torch.device,
    task: Task,
    calibration: Calibration,
    covariates: Values | None = None,
) -> SlidePrediction:
    """One model, one slide; features (N, D) with N >= 1, covariates (K,) where the model is told of columns."""
    told = None if covariates is None else torch.from_numpy(covariates)[None]
    output = head(pack([features], told).to(device))

    def shown(logits: torch.Tensor) -> NDArray[np.float32]:
        return task.shown_logits(logits.double().cpu().numpy(), calibration).astype(np.float32)

    return SlidePrediction(
        answer=task.calibrated(task.answers(output.logits[0].double()), calibration),
        attention=output.attention.float().cpu().numpy(),
        patch_logits=shown(output.patch_logits),
        spread=0.0,
        class_attention=None if output.class_attention is None else output.class_attention.float().cpu().numpy(),
        contributions=None if output.contributions is None else shown(output.contributions),
    )


def average(predictions: Sequence[SlidePrediction], task: Task) -> SlidePrediction:
    """The mean over models, and their spread. With an attention per class, `attention` is the predicted class's."""
    each = np.stack([p.answer for p in predictions])  # (models, C)
    answer = each.mean(axis=0)
    class_attention = _mean_or_none([p.class_attention for p in predictions])
    return SlidePrediction(
        answer=answer,
        attention=(
            _mean([p.attention for p in predictions])
            if class_attention is None
            else class_attention[:, task.shown_output(answer)]
        ),
        patch_logits=_mean([p.patch_logits for p in predictions]),
        spread=float(each[:, task.spread_output(answer)].std()),
        class_attention=class_attention,
        contributions=_mean_or_none([p.contributions for p in predictions]),
    )


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.stack(arrays).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _mean_or_none(arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    present = [array for array in arrays if array is not None]
    return _mean(present) if len(present) == len(arrays) else None
