"""What a finding gets to see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.encoders import Encoder
from features.feature_file import SlideStatistics, read_statistics
from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import Fold, make_folds
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import ForClassesAlone, MissingInput
from mil.diagnosis.numbers.covariates import several_sites
from mil.diagnosis.numbers.folds import within
from mil.diagnosis.numbers.probe import Compared, Probe, compare_probes, linear_probe
from mil.diagnosis.numbers.sample import Sample, embed_sample, load_own_encoder, sample_patches
from mil.evaluation.baseline import slide_means
from mil.run.layout import bags_of, require_complete
from mil.tasks.classification import Classification
from mil.tasks.registry import restored
from mil.tasks.task import Target
from tiling.jobs.errors import RequestError, SlideError


@dataclass(frozen=True)
class Sources:
    """Where things lie: paths, or strings that become paths. What is not given is not looked at.

    table: slide table with the labels, a CSV file or a data frame with its columns.
    """

    features: Path  # folder of feature files
    table: Path | pd.DataFrame
    target: str  # column of the table
    patches: Path | None = None  # folder of patch stores of these features
    run: Path | None = None  # directory of train-mil on these features
    random_features: Path | None = None  # folder of features of the same slides with random weights
    scales: tuple[Path, ...] = ()  # folders of features of the same slides at other scales

    def __post_init__(self) -> None:
        for name in ("features", "table", "patches", "run", "random_features"):
            value = getattr(self, name)
            object.__setattr__(self, name, Path(value) if isinstance(value, str) else value)
        object.__setattr__(self, "scales", tuple(map(Path, self.scales)))

    def require(self) -> None:
        """Raises RequestError for a folder that is not there, or a run that is not complete."""
        given = [("--patches", self.patches), ("--features-random", self.random_features)]
        for flag, folder in [*given, *(("--scales", scale) for scale in self.scales)]:
            if folder is not None and not folder.is_dir():
                raise RequestError(f"{flag} {folder}: no such folder")
        if self.run is not None:
            require_complete(self.run)


@dataclass(frozen=True)
class Inputs:
    """A loaded cohort, its folds, and what else was given. Nothing here is changed by a finding.

    The classes of a cohort with another kind of target are the strata of that.
    """

    sources: Sources
    cohort: Cohort
    folds: tuple[Fold, ...]  # by patient, the same for every finding
    config: DiagnoseConfig
    progress: Callable[[float], None] = lambda share: None  # part of the finding that is done, 0..1

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def sites(self) -> NDArray[np.str_] | None:
        """(S,) names of sites; None unless the table names at least two."""
        return several_sites(self.cohort)

    @property
    def has_run(self) -> bool:
        """Whether a run is given that tells these classes apart, slide by slide."""
        run = self.sources.run
        if run is None or self.config.task != Classification.kind or bags_of(run) != "slide":
            return False
        return restored(require_complete(run)).kind == Classification.kind

    @property
    def told_classes(self) -> list[int]:
        """The positive class, or each of several against the rest."""
        cohort = self.cohort
        return list(range(len(cohort.classes))) if cohort.positive is None else [cohort.positive]

    def other_features(self, folder: Path) -> Cohort:
        """The same slides and labels with the features of another folder. Raises RequestError."""
        return _in_classes(_load(folder, self.sources, self.config))

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """(S, D), the mean patch of each slide."""
        return slide_means(self.cohort)

    @cached_property
    def probe(self) -> Probe:
        """The linear probe on `means`, which several findings compare with."""
        return self.probe_on(self.means)

    def probe_on(self, vectors: NDArray[np.float64], folds: Sequence[Fold] | None = None) -> Probe:
        """The linear probe on vectors (S, D), in the folds of all findings unless others are given."""
        folds = self.folds if folds is None else folds
        return linear_probe(self.cohort, folds, vectors, self.config.bootstrap, self.seed)

    def probe_of_sample(self, values: NDArray[np.float32]) -> Probe:
        """The linear probe on the means of the sample's features (n, D), on the slides that are in the sample."""
        means, there = self.sample.slide_means(values, len(self.cohort.slide_ids))
        return self.probe_on(means, [within(fold, there) for fold in self.folds])

    def compare(self, first: Probe, second: Probe) -> Compared:
        return compare_probes(self.cohort, first, second, self.config.bootstrap, self.seed)

    @cached_property
    def statistics(self) -> tuple[SlideStatistics | None, ...]:
        """S by-products of embedding; None for a slide whose file has none."""
        return tuple(self._statistics(name) for name in self.cohort.slide_ids)

    def _statistics(self, slide_id: str) -> SlideStatistics | None:
        try:
            return read_statistics(self.sources.features / f"{slide_id}.h5")
        except SlideError:  # features of another tool
            return None

    @cached_property
    def encoder(self) -> Encoder:
        """The network that made the features. Raises MissingInput where its weights are not at hand."""
        return load_own_encoder(self.cohort, self.config.weights, self.sources.features)

    @cached_property
    def sample(self) -> Sample:
        """Some patches of all slides. Raises MissingInput."""
        return sample_patches(self.cohort, self.require_patches(), self.config.sample_patches)

    @cached_property
    def sample_features(self) -> NDArray[np.float32]:
        """(n, D) of the sample's crops, as the encoder gives them. Raises MissingInput."""
        return embed_sample(self.encoder, self.sample.crops(self.encoder), self.config.device)

    def require_patches(self) -> Path:
        """Raises MissingInput."""
        if self.sources.patches is None:
            raise MissingInput("Give --patches and the folder of patch stores that tile-slides wrote.")
        return self.sources.patches

    def require_run(self) -> tuple[Path, dict[str, Any]]:
        """The run and its provenance. MissingInput without one, RequestError where its slides or labels are others."""
        folder = self.sources.run
        if folder is None:
            raise MissingInput("Give --run and the run directory of train-mil on these features.")
        if bags_of(folder) == "patient":
            raise MissingInput(
                "In this run all slides of a patient are one bag, and the finding is about slides. Give a run that was "
                "trained with --bag slide; how this one's training went stands in its report.html."
            )
        if not self.has_run:
            raise ForClassesAlone("How its training went and what it gets wrong stands in the run's report.html.")
        provenance = require_complete(folder)
        for key, what in (("features_sha256", "features"), ("labels_sha256", "labels or patients")):
            if provenance.get(key) != getattr(self.cohort, key):
                raise RequestError(
                    f"--run {folder.name}: it was trained on other {what} than those given; "
                    "give the features and the label table of that run, or train again"
                )
        return folder, provenance


def load_inputs(
    sources: Sources,
    config: DiagnoseConfig,
    progress: Callable[[float], None] = lambda share: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Inputs:
    """Load the cohort and deal its patients into folds. Raises RequestError."""
    sources.require()
    cohort = _in_classes(_load(sources.features, sources, config))
    for text in cohort.warnings:
        warn(text)
    folds = make_folds(cohort, SplitPlan(folds=config.folds, seed=config.seed))
    return Inputs(sources, cohort, tuple(folds), config, progress)


def _load(folder: Path, sources: Sources, config: DiagnoseConfig) -> Cohort:
    target = Target(sources.target, config.positive, config.task, config.event, config.order, config.entry, gaps=True)
    if target.kind == "several":
        raise RequestError(
            f"a diagnosis is of one target; give --target {target.names[0]}, then the same for "
            f"{' and '.join(target.names[1:])}: slides without a label of it are left out"
        )
    return load_cohort(folder, sources.table, target)


def _in_classes(cohort: Cohort) -> Cohort:
    """The same where its target is a class; otherwise its strata take the place of classes, and a warning says so."""
    if isinstance(cohort.task, Classification):
        return cohort
    (strata,) = cohort.strata
    names = strata.names
    said = f"the target is {cohort.task.noun}: findings that tell classes apart are asked of {', '.join(names)}"
    task = Classification(names, 1 if len(names) == 2 else None)
    return replace(cohort, task=task, targets=strata.of_slide, warnings=(*cohort.warnings, said))
