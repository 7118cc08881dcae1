"""Which models of a run may judge a slide: those that saw neither it nor its patient in training or validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mil.run.novelty import read_training_slides
from mil.run.tables import read_splits


@dataclass(frozen=True)
class TrainedOn:
    """The slides and patients of a run. Models are positions among its folds, in order."""

    models: int
    patient_of: Mapping[str, str]  # slide id: patient id
    slide_of: Mapping[str, str]  # slide fingerprint: slide id
    taught: Mapping[str, frozenset[int]]  # patient id: the models that saw one of its slides

    def patient(self, slide_id: str, fingerprint: str, patient: str = "") -> str:
        """The run's patient that a slide belongs to: by its patient, its id or its file; empty if it is a new one."""
        if patient in self.taught:
            return patient
        return self.patient_of.get(slide_id) or self.patient_of.get(self.slide_of.get(fingerprint, ""), "")

    def unseen_by(self, patient: str) -> list[int]:
        """Models that never saw the patient; all for a new one, none for one that taught all of them."""
        return [model for model in range(self.models) if model not in self.taught.get(patient, frozenset())]


def read_trained_on(run: Path) -> TrainedOn:
    splits = read_splits(run)
    places = {place: i for i, place in enumerate(sorted(set(zip(splits["repeat"], splits["fold"], strict=True))))}
    taught: dict[str, set[int]] = {patient: set() for patient in splits["patient_id"]}
    for repeat, fold, patient, split in splits[["repeat", "fold", "patient_id", "split"]].itertuples(index=False):
        if split != "test":
            taught[patient].add(places[repeat, fold])
    return TrainedOn(
        models=len(places),
        patient_of=dict(zip(splits["slide_id"], splits["patient_id"], strict=True)),
        slide_of={fingerprint: slide_id for slide_id, fingerprint in read_training_slides(run)[1].items()},
        taught={patient: frozenset(models) for patient, models in taught.items()},
    )
