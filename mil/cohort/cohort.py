"""A cohort: the feature files that have a label, joined with the label table and checked before any training.

All features are held as float16 (1,000 slides of 10,000 patches with D = 1,024: 20 GB), see mil.cohort.memory.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.feature_file import UNKNOWN, EmbeddingInfo, Embeddings
from features.interop.reader import open_features
from mil.cohort.covariates import Covariates, read_covariates
from mil.cohort.memory import FeatureIntake
from mil.cohort.patients import SlidesOfBags, with_patients_labels
from mil.pages.words import counted
from mil.tasks.classification import Classification
from mil.tasks.registry import task_kind
from mil.tasks.task import Strata, Target, Targets, Task
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow, load_table, raise_faults

ID_SEPARATOR = "|"  # of several slides' ids in one cell, which no id has
_SHOWN_IDS = 8
_SHOWN_REASONS = 3  # of unreadable files; failures.csv has all
_BLOCK_ROWS = 2048  # patches that are float64 at a time
SCALE_RATIO = 1.1  # beyond this, slides were cut at different magnifications


@dataclass(frozen=True)
class Cohort:
    """S bags of L slides in the order of their ids; every slide has at least one patch.

    Each slide is a bag or, where `bag_of` is given, all slides of a patient are, their patches one slide after another.
    """

    slide_ids: NDArray[np.str_]  # (L,)
    patient_ids: NDArray[np.str_]  # (S,)
    task: Task
    targets: Targets  # (S,) or (S, …), as the task reads them
    splits: NDArray[np.str_] | None  # (S,) train, val or test, if the table fixes them
    sites: NDArray[np.str_] | None  # (L,) hospital or scanner, empty where a row has none; None if no row has one
    features: Sequence[Tensor]  # S of (N, D) float16
    coords_l0: tuple[NDArray[np.int64], ...]  # L of (N, 2), (x, y)
    infos: tuple[EmbeddingInfo, ...]  # L
    features_sha256: str  # of ids, features and coords
    labels_sha256: str  # of ids, patients, labels and splits
    warnings: tuple[str, ...]  # what the user should know, one sentence each
    left_out: dict[str, str]  # labelled slides that are not used: slide id to reason
    unreadable: tuple[str, ...]  # those among them whose feature file is damaged
    covariates: Covariates | None = None  # columns that models are told of
    bag_of: NDArray[np.int64] | None = None  # (L,) rising: the bag of each slide; None: each is one

    @property
    def of_patients(self) -> bool:
        """Whether a bag is a patient."""
        return self.bag_of is not None

    @property
    def bag_ids(self) -> NDArray[np.str_]:
        """(S,) ids of slides or of patients."""
        return self.patient_ids if self.of_patients else self.slide_ids

    def slides_of(self, bags: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Positions of the slides of these bags, rising."""
        return np.atleast_1d(bags) if self.bag_of is None else np.flatnonzero(np.isin(self.bag_of, bags))

    def bags_of(self, slides: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bag of each of these slides."""
        return slides if self.bag_of is None else self.bag_of[slides]

    def slide_features(self) -> Sequence[Tensor]:
        """L of (N, D), views of `features`."""
        if self.bag_of is None:
            return self.features
        return SlidesOfBags(self.features, self.bag_of, [len(coords) for coords in self.coords_l0])

    def named(self, bags: NDArray[np.int64]) -> dict[str, Any]:
        """The columns of a prediction table that say whose each row is, see mil.run.layout."""
        patients = self.patient_ids[bags]
        if not self.of_patients:
            return {"slide_id": self.slide_ids[bags], "patient_id": patients}
        slides = [ID_SEPARATOR.join(self.slide_ids[self.slides_of(bag)]) for bag in bags.tolist()]
        return {"patient_id": patients, "slide_ids": slides}

    @cached_property
    def strata(self) -> tuple[Strata, ...]:
        """Of each target, by which splits are balanced."""
        return self.task.strata(self.targets)

    @property
    def classes(self) -> tuple[str, ...]:
        """C, sorted; like `positive` and `labels` for those who ask of classes alone. RequestError for other tasks."""
        return self._classification.classes

    @property
    def positive(self) -> int | None:
        """Position in classes; None unless C = 2."""
        return self._classification.positive

    @property
    def labels(self) -> NDArray[np.int64]:
        """(S,) positions in classes."""
        assert self._classification
        return self.targets

    @property
    def _classification(self) -> Classification:
        if not isinstance(self.task, Classification):
            raise RequestError(f"this asks for classes, and the target is {self.task.noun}")
        return self.task

    @property
    def mpp(self) -> float | None:
        """Median µm per patch pixel; None if no slide has a scale."""
        known = [info.mpp for info in self.infos if np.isfinite(info.mpp)]
        return float(np.median(known)) if known else None

    @property
    def encoder(self) -> dict[str, Any]:
        """What is equal for all slides: how the features were made."""
        return encoder_identity(self.infos[0], self.features[0].shape[1])

    @cached_property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each slide and feature (S, D): the mean over patches, and the sum of squared deviations from it."""
        means, squares = (np.empty((len(self.features), self.features[0].shape[1])) for _ in range(2))
        for i, features in enumerate(self.features):
            blocks = features.split(_BLOCK_ROWS)
            mean = sum((block.double().sum(0) for block in blocks), torch.zeros(())) / len(features)
            means[i] = mean.numpy()
            squares[i] = sum(((block.double() - mean).square().sum(0) for block in blocks), torch.zeros(())).numpy()
        return means, squares

    def spread(self, slides: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (D,) of each feature over all patches of the slides."""
        means, squares = (moments[slides] for moments in self.moments)  # (n, D)
        sizes = np.array([[len(self.features[i])] for i in slides])  # (n, 1)
        mean = (sizes * means).sum(axis=0) / sizes.sum()
        return mean, np.sqrt((squares + sizes * (means - mean) ** 2).sum(axis=0) / sizes.sum())


def encoder_identity(info: EmbeddingInfo, dim: int) -> dict[str, Any]:
    """The keys in which feature files must agree to be used together."""
    keys = ("encoder", "weights_sha256", "input_px", "normalisation", "precision")
    return {**{key: getattr(info, key) for key in keys}, "dim": dim}


def load_cohort(
    folder: Path,
    table: Path | pd.DataFrame,
    target: Target | str,
    memory: str = "ram",
    scratch: Path = Path(),
    covariates: Sequence[str] = (),
) -> Cohort:
    """Join feature files and label table. Raises RequestError with all faults that make training impossible.

    table: a CSV file, or a data frame with its columns.
    target: a column's name stands for a classification by it.
    memory and scratch say where the features are held, see mil.cohort.memory.
    covariates: columns that models are told of.
    """
    target = Target(target) if isinstance(target, str) else target
    kind = task_kind(target.kind)
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder of feature files; make one with extract-features")
    name = str(table) if isinstance(table, Path) else "the slide table"
    of_patients = target.bag == "patient"
    rows = load_table(table, needs_path=False, target=target.column, empty_labels=of_patients or target.gaps)
    if target.gaps:
        rows = [row for row in rows if all(row.labels[name] for name in target.names)]
    if of_patients:
        needed, others = ((), target.columns) if target.kind == "several" else (target.columns, ())
        rows = with_patients_labels(rows, needed, (*others, *covariates), name)
    else:
        rows.sort(key=lambda row: row.slide_id)
    _refuse_partial_split(rows, name)
    intake = FeatureIntake(memory, scratch, joins=of_patients)
    loaded, unreadable, warnings, left_out, features_sha256 = _read_features(folder, rows, intake)
    if not loaded:
        raise RequestError(
            "\n  ".join(
                [
                    f"no slide of {name} has features in {folder}; is it the right folder, and do the ids agree?",
                    *warnings,
                ]
            )
        )
    kept = [row for row in rows if row.slide_id in loaded]
    embeddings = [loaded[row.slide_id] for row in kept]
    faults = _encoder_faults(embeddings) + [
        f"--covariates: {name} is what is to be predicted" for name in covariates if name in target.columns
    ]
    bag_of = np.unique([row.patient_id for row in kept], return_inverse=True)[1] if of_patients else None
    bags = kept if bag_of is None else [kept[i] for i in np.unique(bag_of, return_index=True)[1]]  # a row of each
    try:
        task, targets = kind.read(bags, target, name)
    except ValueError as error:
        faults += str(error).splitlines()
    try:
        told = read_covariates(bags, covariates)
    except ValueError as error:
        faults += str(error).splitlines()
    raise_faults("cannot train on these slides", faults)
    keys: list[tuple[str, ...]] = [
        (r.slide_id, r.patient_id, *(r.labels[c] for c in target.names), r.split, *([r.site] if r.site else []))
        for r in kept
    ]
    keys += [(r.labels[target.event],) for r in kept if target.event]
    further = [name for name in (target.entry, *covariates) if name]
    keys += [tuple(r.labels[name] for name in further) for r in kept if further]
    return Cohort(
        slide_ids=np.array([row.slide_id for row in kept]),
        patient_ids=np.array([row.patient_id for row in bags]),
        task=task,
        targets=targets,
        splits=np.array([row.split for row in bags]) if kept[0].split else None,
        sites=np.array([row.site for row in kept]) if any(row.site for row in kept) else None,
        features=intake.features(),
        coords_l0=tuple(e.coords_l0 for e in embeddings),
        infos=tuple(e.info for e in embeddings),
        features_sha256=features_sha256,
        labels_sha256=hashlib.sha256(repr(keys).encode()).hexdigest(),
        warnings=tuple(
            warnings
            + (_label_warnings(kept, target.names) if bag_of is None else _incomplete_warning(rows, kept))
            + scale_warning([e.info.mpp for e in embeddings])
            + _unknown_warning(embeddings)
            + intake.notice()
        ),
        left_out=left_out,
        unreadable=tuple(unreadable),
        covariates=told,
        bag_of=bag_of,
    )


def scale_warning(mpps: Sequence[float]) -> list[str]:
    """A warning if slides differ in µm per patch pixel, which a model cannot make up for."""
    known = [mpp for mpp in mpps if np.isfinite(mpp)]
    if not known or max(known) <= SCALE_RATIO * min(known):
        return []
    return [f"patches were cut at different scales, from {min(known):.3g} to {max(known):.3g} µm per pixel"]


def _unknown_warning(embeddings: Sequence[Embeddings]) -> list[str]:
    """What files of other tools leave open, and what does not work because of it."""
    warnings = []
    if any(e.info.encoder == UNKNOWN for e in embeddings):
        warnings.append("the feature files do not say which encoder made them; make sure that it was one and the same")
    if all(len(e.coords_l0) == 1 for e in embeddings):
        warnings.append("each slide has one row of features, so there is no map to draw")
    elif any(not e.info.patch_size_l0 for e in embeddings):
        warnings.append(
            "the feature files do not say how large a patch is on the slide, so export-heatmaps will refuse them; "
            "convert-features adds it (--to slidemil --patch-size-l0 …)"
        )
    return warnings


def _label_warnings(rows: Sequence[SlideRow], targets: Sequence[str]) -> list[str]:
    """Patients whose slides carry different labels: right for a label of the slide, an error for one of the patient."""
    warnings = []
    for target in targets:
        labels: dict[str, set[str]] = {}
        for row in rows:
            if row.labels[target]:
                labels.setdefault(row.patient_id, set()).add(row.labels[target])
        of = f" in {target!r}" if len(targets) > 1 else ""
        if mixed := [patient for patient, own in labels.items() if len(own) > 1]:
            warnings.append(f"patients whose slides carry different labels{of}, {shown(mixed)}")
    return warnings


def _incomplete_warning(rows: Sequence[SlideRow], kept: Sequence[SlideRow]) -> list[str]:
    """Patients whose bag lacks slides of the table, or who have none."""
    used, slides = {row.patient_id for row in kept}, {row.slide_id for row in kept}
    lacking = sorted({row.patient_id for row in rows} - used)
    fewer = sorted({row.patient_id for row in rows if row.slide_id not in slides} & used)
    warnings = [f"patients without any slide that can be used, left out: {shown(lacking)}"] if lacking else []
    return warnings + ([f"patients of whom some slides are left out, {shown(fewer)}"] if fewer else [])


def shown(ids: Sequence[str]) -> str:
    """`12: a, b, c, …` for messages."""
    return f"{len(ids)}: {', '.join(ids[:_SHOWN_IDS])}{', …' if len(ids) > _SHOWN_IDS else ''}"


def _refuse_partial_split(rows: Sequence[SlideRow], table: str) -> None:
    without = [row.slide_id for row in rows if not row.split]
    if 0 < len(without) < len(rows):
        raise RequestError(
            f"{table}: column 'split' is filled for some slides only; fill it for the other {shown(without)}; "
            "or remove the column to get a cross-validation"
        )


def _read_features(
    folder: Path, rows: Sequence[SlideRow], intake: FeatureIntake
) -> tuple[dict[str, Embeddings], dict[str, str], list[str], dict[str, str], str]:
    """Usable embeddings by slide id, whose features (0, D) `intake` has got in float16, in the order of the rows.

    Then the unreadable, warnings, why each other slide is left out, and the sha256 of ids, features and coords.
    """
    source = open_features(folder)
    present = source.paths
    loaded: dict[str, Embeddings] = {}
    unreadable: dict[str, str] = {}
    empty, rounded, sha = [], 0, hashlib.sha256()
    for row in rows:
        if row.slide_id not in present:
            continue
        try:
            read = source.read(row.slide_id)
            embeddings = in_float16(read)
        except SlideError as error:
            unreadable[row.slide_id] = str(error)
            continue
        features = embeddings.features
        if len(features):
            rounded += features is not read.features and not np.array_equal(features, read.features)
            sha.update(f"{row.slide_id}:{features.shape};".encode())
            sha.update(np.ascontiguousarray(features).data)
            sha.update(np.ascontiguousarray(embeddings.coords_l0).data)
            intake.add(features, row.patient_id)
            loaded[row.slide_id] = replace(embeddings, features=np.empty((0, features.shape[1]), np.float16))
        else:
            empty.append(row.slide_id)
    missing = [row.slide_id for row in rows if row.slide_id not in present]
    ignored = set(present) - {row.slide_id for row in rows}
    warnings = [f"unreadable, left out: {message}" for message in list(unreadable.values())[:_SHOWN_REASONS]]
    if len(unreadable) > _SHOWN_REASONS:
        warnings.append(f"unreadable as well, left out, {shown(list(unreadable)[_SHOWN_REASONS:])}")
    if missing:
        warnings.append(f"labelled slides without a feature file, left out: {shown(missing)}")
    if empty:
        warnings.append(f"slides without any patch, left out: {shown(empty)}")
    if rounded:
        warnings.append(f"features of {counted(rounded, 'slide')} are float32 and are rounded to float16 for training")
    if ignored:
        warnings.append(f"feature files without a label, ignored: {shown(sorted(ignored))}")
    left_out = {**unreadable, **dict.fromkeys(missing, "no feature file"), **dict.fromkeys(empty, "no patch")}
    return loaded, unreadable, warnings, left_out, sha.hexdigest()


def in_float16(embeddings: Embeddings) -> Embeddings:
    with np.errstate(over="ignore"):
        features = embeddings.features.astype(np.float16, copy=False)
    if not np.isfinite(features).all():
        raise SlideError(f"{embeddings.info.slide_id}: features hold NaN, infinity or values beyond ±65504")
    return Embeddings(features, embeddings.coords_l0, embeddings.info)


def _encoder_faults(embeddings: Sequence[Embeddings]) -> list[str]:
    """One line for each identity other than the most frequent one."""
    by_identity = [tuple(encoder_identity(e.info, e.features.shape[1]).items()) for e in embeddings]
    (usual, _), *others = Counter(by_identity).most_common()
    faults = []
    for other, _ in others:
        ids = [e.info.slide_id for e, identity in zip(embeddings, by_identity, strict=True) if identity == other]
        differing = [f"{k} {v!r} instead of {dict(usual)[k]!r}" for k, v in other if v != dict(usual)[k]]
        faults.append(f"features made differently ({', '.join(differing)}), extract them again: {shown(ids)}")
    return faults
