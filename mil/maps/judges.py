"""The run's models on one slide again, from its cached features: one fold, gradients, patches left out.

Only models that saw neither the slide nor its patient in training or validation are asked.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from features.feature_file import Embeddings
from features.interop.reader import open_features
from mil.cohort.cohort import in_float16
from mil.maps.gradients import input_gradients
from mil.run.attention import SlideAttention, describe_bag
from mil.run.ensemble import Ensemble, Values, average, load_ensemble
from mil.run.layout import is_complete
from mil.run.trained_on import TrainedOn, read_trained_on
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow

T = TypeVar("T")


@dataclass(frozen=True)
class SlideModels:
    """The features of one slide and the others of its bag, and the positions of the run's models that may judge it."""

    ensemble: Ensemble
    slides: Sequence[Embeddings]  # of the bag, in its order
    at: int  # the slide's place among them
    patient: str  # whose bag it is; empty where the slide is the bag
    models: Sequence[int]
    covariates: Values | None = None  # (K,) where they are told of columns

    @property
    def embeddings(self) -> Embeddings:
        return self.slides[self.at]

    def attention(self, label: str) -> list[SlideAttention]:
        """What these models see in the slide, then in the other slides of the bag."""
        prediction, task = (
            self.ensemble.predict(*self.slides, models=self.models, covariates=self.covariates),
            self.ensemble.task,
        )
        slides = [(of.info, of.coords_l0) for of in self.slides]
        return self._own_first(describe_bag(slides, prediction, task, label, self.patient))

    def gradients(self) -> NDArray[np.float32]:
        """(ΣN, C), the slide's own patches first, see mil.maps.gradients."""
        heads = [self.ensemble.heads[m] for m in self.models]
        found = input_gradients(heads, self._features, self.ensemble.device)
        return np.concatenate(self._own_first(np.split(found, np.cumsum(self._sizes)[:-1])))

    def answer(self, of_class: str, patches: NDArray[np.int64]) -> float:
        """What the models say of an output, such as a class's calibrated probability, given these patches of the slide
        alone, and all of the bag's other slides."""
        parts, task = list(self._features.split(self._sizes)), self.ensemble.task
        parts[self.at] = parts[self.at][torch.from_numpy(patches)]
        features = torch.cat(parts)
        each = [self.ensemble.ask(m, features, self.covariates) for m in self.models]
        return float(average(each, task).answer[task.output_names.index(of_class)])

    @functools.cached_property
    def _features(self) -> torch.Tensor:
        return torch.cat([torch.from_numpy(in_float16(of).features) for of in self.slides])

    @property
    def _sizes(self) -> list[int]:
        return [len(of.features) for of in self.slides]

    def _own_first(self, of_slides: Sequence[T]) -> list[T]:
        return [of_slides[self.at], *of_slides[: self.at], *of_slides[self.at + 1 :]]


def slide_models(
    run: Path, features: Path, row: SlideRow, bag: Sequence[str], device: str, fold: int = -1
) -> SlideModels:
    """The models that may judge a slide, on one thread of this process; `fold` asks for this one alone.

    bag: ids of its patient's slides where these are one bag, else empty.
    SlideError where no model may, or the features are missing or of another kind than those of the run, or its columns.
    """
    torch.set_num_threads(1)  # a worker has one core: threads of several would wait for each other, 50 times as long
    slide_id, source = row.slide_id, open_features(features)
    try:
        slides = [source.read(name) for name in bag or [slide_id]]
        ensemble, trained_on = _loaded(run, device)
        for of in slides:
            ensemble.require_encoder(of.info, of.features.shape[1])
        covariates = ensemble.columns_told.read([row])[0][0] if ensemble.columns_told else None
    except RequestError as error:  # of this slide's features or row, or of the device: other slides go on
        raise SlideError(str(error)) from error
    at = bag.index(slide_id) if bag else 0
    known = trained_on.patient(slide_id, slides[at].info.slide_fingerprint, row.patient_id)
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
    patient = (known or row.patient_id) if bag else ""
    return SlideModels(ensemble, slides, at, patient, [fold] if fold >= 0 else unseen, covariates)


def _loaded(run: Path, device: str) -> tuple[Ensemble, TrainedOn]:
    """Read once for all slides, and again where the run has been replaced: its last file is then another one."""
    last = (run / "metrics.json").stat() if is_complete(run) else None
    return _read(run, device, (last.st_mtime_ns, last.st_ino, last.st_size) if last else None)


@functools.lru_cache(maxsize=1)
def _read(run: Path, device: str, made: tuple[int, ...] | None) -> tuple[Ensemble, TrainedOn]:
    return load_ensemble(run, device), read_trained_on(run)
