"""What a finding gets to see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.encoders import Encoder
from features.feature_file import SlideStatistics, read_statistics
from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import MissingInput
from mil.diagnosis.numbers.probe import Probe, linear_probe
from mil.diagnosis.numbers.sample import Sample, embed_sample, load_own_encoder, sample_patches
from mil.evaluation.baseline import slide_means
from tiling.jobs.errors import SlideError


@dataclass(frozen=True)
class Inputs:
    """A loaded cohort, its folds, and what else was given. Nothing here is changed by a finding."""

    folder: Path  # of the feature files
    table: Path
    target: str
    cohort: Cohort
    folds: tuple[Fold, ...]  # by patient, the same for every finding
    config: DiagnoseConfig
    patches: Path | None = None  # folder of patch stores
    run: Path | None = None  # of train-mil
    random_features: Path | None = None  # folder of features of the same slides with random weights
    scales: tuple[Path, ...] = ()  # folders of features of the same slides at other scales
    progress: Callable[[float], None] = lambda share: None  # part of the finding that is done, 0..1

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """(S, D), the mean patch of each slide."""
        return slide_means(self.cohort)

    @cached_property
    def probe(self) -> Probe:
        """The linear probe on `means`, which several findings compare with."""
        return linear_probe(self.cohort, self.folds, self.means, self.config.bootstrap, self.seed)

    @cached_property
    def statistics(self) -> tuple[SlideStatistics | None, ...]:
        """S by-products of embedding; None for a slide whose file has none."""
        return tuple(self._statistics(name) for name in self.cohort.slide_ids)

    def _statistics(self, slide_id: str) -> SlideStatistics | None:
        try:
            return read_statistics(self.folder / f"{slide_id}.h5")
        except SlideError:  # features of another tool
            return None

    @cached_property
    def encoder(self) -> Encoder:
        """The network that made the features. Raises MissingInput where its weights are not at hand."""
        return load_own_encoder(self.cohort, self.config, self.folder)

    @cached_property
    def sample(self) -> Sample:
        """Some patches of all slides. Raises MissingInput."""
        return sample_patches(self.cohort, self.require_patches(), self.config.sample_patches)

    @cached_property
    def sample_features(self) -> NDArray[np.float32]:
        """(n, D) of the sample's crops, as the encoder gives them. Raises MissingInput."""
        return embed_sample(self.encoder, self.sample.crops(self.encoder), self.config.device)

    @property
    def sites(self) -> NDArray[np.str_] | None:
        """(S,) names of sites; None unless the table names at least two."""
        sites = self.cohort.sites
        return sites if sites is not None and len(set(sites[sites != ""])) > 1 else None

    def require_patches(self) -> Path:
        """Raises MissingInput."""
        if self.patches is None:
            raise MissingInput("Give --patches and the folder of patch stores that tile-slides wrote.")
        return self.patches

    def require_run(self) -> Path:
        """Raises MissingInput."""
        if self.run is None:
            raise MissingInput("Give --run and the run directory of train-mil on these features.")
        return self.run
