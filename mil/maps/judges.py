"""The run's models on one slide again, from its cached features: one fold, gradients, patches left out.

Only models that saw neither the slide nor its patient in training or validation are asked.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.feature_file import Embeddings
from features.interop.reader import open_features
from mil.cohort.cohort import in_float16
from mil.maps.gradients import input_gradients
from mil.run.attention import SlideAttention, describe_attention
from mil.run.ensemble import Ensemble, Values, average, load_ensemble
from mil.run.layout import is_complete
from mil.run.trained_on import TrainedOn, read_trained_on
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow


@dataclass(frozen=True)
class SlideModels:
    """One slide's features, and the positions of the run's models that may judge it."""

    ensemble: Ensemble
    embeddings: Embeddings
    models: Sequence[int]
    covariates: Values | None = None  # (K,) where they are told of columns

    def attention(self, label: str) -> SlideAttention:
        """What these models see in the slide."""
        ensemble = self.ensemble
        prediction = ensemble.predict(self.embeddings, self.models, self.covariates)
        return describe_attention(self.embeddings.info, self.embeddings.coords_l0, prediction, ensemble.task, label)

    def gradients(self) -> NDArray[np.float32]:
        """(N, C), see mil.maps.gradients."""
        heads = [self.ensemble.heads[m] for m in self.models]
        return input_gradients(heads, self._features, self.ensemble.device)

    def answer(self, of_class: str, patches: NDArray[np.int64]) -> float:
        """What the models say of an output, such as a class's calibrated probability, given these patches alone."""
        features, task = self._features[torch.from_numpy(patches)], self.ensemble.task
        each = [self.ensemble.ask(m, features, self.covariates) for m in self.models]
        return float(average(each, task).answer[task.output_names.index(of_class)])

    @functools.cached_property
    def _features(self) -> torch.Tensor:
        return torch.from_numpy(in_float16(self.embeddings).features)


def slide_models(run: Path, features: Path, row: SlideRow, device: str, fold: int = -1) -> SlideModels:
    """The models that may judge a slide; `fold` asks for this one alone.

    SlideError where no model may, or the features are missing or of another kind than those of the run, or its columns.
    """
    slide_id = row.slide_id
    try:
        embeddings = open_features(features).read(slide_id)
        ensemble, trained_on = _loaded(run, device)
        ensemble.require_encoder(embeddings.info, embeddings.features.shape[1])
        covariates = ensemble.columns_told.read([row])[0][0] if ensemble.columns_told else None
    except RequestError as error:  # of this slide's features or row, or of the device: other slides go on
        raise SlideError(str(error)) from error
    known = trained_on.patient(slide_id, embeddings.info.slide_fingerprint, row.patient_id)
    unseen = trained_on.unseen_by(known)
    if not unseen:
        raise SlideError(
            f"{slide_id}: all models of the run were trained on this slide or its patient {known}, "
            "so a map would look better than it is"
        )
    if fold >= 0 and fold not in unseen:
        raise SlideError(
            f"{slide_id}: --fold {fold} was trained on this slide or its patient {known}, or is not in the run; "
            f"folds that may show it: {', '.join(map(str, unseen))}"
        )
    return SlideModels(ensemble, embeddings, [fold] if fold >= 0 else unseen, covariates)


def _loaded(run: Path, device: str) -> tuple[Ensemble, TrainedOn]:
    """Read once for all slides, and again where the run has been replaced: its last file is then another one."""
    last = (run / "metrics.json").stat() if is_complete(run) else None
    return _read(run, device, (last.st_mtime_ns, last.st_ino, last.st_size) if last else None)


@functools.lru_cache(maxsize=1)
def _read(run: Path, device: str, made: tuple[int, ...] | None) -> tuple[Ensemble, TrainedOn]:
    return load_ensemble(run, device), read_trained_on(run)
