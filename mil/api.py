"""What notebooks call: train a run, read what it found, predict other slides.

Paths or data frames in, typed results out; RequestError with the texts of the commands where a request cannot be met.
Nothing is printed, and torch's modes, threads and random state are the caller's again afterwards. A `Run` reads its
directory anew each time it is asked, so it is right after the run was replaced, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mil.cohort.splits import Fold
from mil.run.attention import SlideAttention, attention_path, read_attention
from mil.run.checkpoint import fold_numbers
from mil.run.layout import require_complete
from mil.run.predict import Predictions, predict_folder
from mil.run.tables import (
    read_failures,
    read_history,
    read_metrics,
    read_patient_predictions,
    read_predictions,
    read_splits,
)
from mil.tasks.registry import restored
from mil.tasks.task import Task
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.watch import Watcher
from tiling.jobs.command import settings
from tiling.jobs.errors import RequestError
from tiling.manifest import load_table
from tiling.objects.folder import local_folder

__all__ = ["Predictions", "RequestError", "Run", "predict", "train"]

T = TypeVar("T")
OnEpoch = Callable[[Fold, Mapping[str, float]], None]


@dataclass(frozen=True)
class Run:
    """A finished run directory. RequestError, whatever is asked, where `path` is none."""

    path: Path

    @property
    def provenance(self) -> dict[str, Any]:
        """Target, classes, how the features were made, settings, versions."""
        return require_complete(self.path)

    @property
    def task(self) -> Task:
        """What the run was asked: its classes, for a classification."""
        return restored(self.provenance)

    @property
    def metrics(self) -> dict[str, Any]:
        """`run.metrics["slide"]["auroc"]` is {"value": …, "low": …, "high": …}; "patient" alone with bag="patient"."""
        return self._read(read_metrics)

    @property
    def predictions(self) -> pd.DataFrame:
        """Out of fold, one row a slide and repeat, or a patient and repeat with bag="patient"."""
        return self._read(read_predictions)

    @property
    def patient_predictions(self) -> pd.DataFrame:
        return self._read(read_patient_predictions)

    @property
    def splits(self) -> pd.DataFrame:
        return self._read(read_splits)

    @property
    def left_out(self) -> pd.DataFrame:
        """slide_id and reason of labelled slides that are in no number."""
        return self._read(read_failures)

    @property
    def folds(self) -> list[int]:
        """Numbers of the folds of all repeats."""
        return self._read(fold_numbers)

    @property
    def report(self) -> Path:
        """The page, which loads from disk alone."""
        require_complete(self.path)
        return self.path / "report.html"

    def history(self, fold: int) -> pd.DataFrame:
        """Losses by epoch."""
        require_complete(self.path)
        return read_history(self.path, fold)

    def attention(self, slide_id: str) -> SlideAttention:
        """What the models that did not see the slide saw in it: attention (N,), patch_logits (N, C), coords (N, 2).

        With bag="patient" the attention sums to 1 over all slides of the patient.
        """
        require_complete(self.path)
        return read_attention(attention_path(self.path, slide_id))

    def _read(self, reader: Callable[[Path], T]) -> T:
        require_complete(self.path)
        return reader(self.path)


def train(
    features: str | Path,
    labels: str | Path | pd.DataFrame,
    target: str,
    out: str | Path,
    on_epoch: OnEpoch | None = None,
    **given: Any,
) -> Run:
    """Train a head on the slide labels in a column, or finish the run that the same request began in `out`.

    features: folder of feature files, or its address in an object store (with stage=DIR for copies). labels: slide
    table (.csv file, or data frame with its columns). target: its column, or several parted by commas. Settings of
    train-mil are given by name, such as `head="mean"`.
    on_epoch: called with the fold and the values of history.csv, epoch by epoch.
    """
    config = settings(TrainConfig, None, given)
    table = labels if isinstance(labels, pd.DataFrame) else Path(labels)
    return Run(
        train_mil(features, table, target, local_folder(out, "runs are written"), config, _Callback(on_epoch)).out
    )


def predict(
    run: Run | str | Path,
    features: str | Path,
    slides: str | Path | pd.DataFrame | None = None,
    device: str = "auto",
    prevalence: float = 0.0,
) -> Predictions:
    """What the run's models say of the slides in a folder of feature files, as a table.

    slides: slide table that says whose the slides are, by which those of the run's own patients are judged by the
    models that did not see them; a run that was told of columns needs it, and one with bag="patient" for new patients.
    prevalence: share of the positive class where the slides come from; 0: as in training.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    table = Path(slides) if isinstance(slides, str) else slides
    rows = [] if table is None else load_table(table, needs_path=False)
    return predict_folder(path, local_folder(features, "features are predicted"), rows, device, prevalence)


class _Callback(Watcher):
    def __init__(self, call: OnEpoch | None) -> None:
        self._call = call

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        if self._call:
            self._call(fold, values)
