"""How training is followed: what a session is, and who is told how it goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.run.checkpoint import Checkpoint
from mil.training.config import TrainConfig


@dataclass(frozen=True)
class Session:
    """One call of train-mil, checked and ready to train."""

    cohort: Cohort
    folds: Sequence[Fold]
    target: str  # column of the slide table
    config: TrainConfig
    device: torch.device
    out: Path
    load: Callable[[], Cohort]  # the same cohort, in another process


class Watcher:
    """Is told how training goes, and does nothing; who wants to know overrides what it needs."""

    def start(self, session: Session, notices: Sequence[str]) -> None:
        """Before any training. notices: what the user should know of the cohort and its folds."""

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        """Once an epoch of each model of a fold, whose own `fold` this is, in any order; values as in history.csv."""

    def skipped(self, fold: Fold) -> None:
        """The fold was trained by an earlier call."""

    def ended(self, fold: Fold, history: pd.DataFrame, checkpoint: Checkpoint) -> None: ...

    def note(self, text: str) -> None:
        """Something else that the user should know."""

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        """Once, when training has ended; metrics as in metrics.json, None if it did not end well."""


class Watchers(Watcher):
    """Several as one."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def start(self, session: Session, notices: Sequence[str]) -> None:
        for watcher in self._watchers:
            watcher.start(session, notices)

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        for watcher in self._watchers:
            watcher.epoch(fold, values)

    def skipped(self, fold: Fold) -> None:
        for watcher in self._watchers:
            watcher.skipped(fold)

    def ended(self, fold: Fold, history: pd.DataFrame, checkpoint: Checkpoint) -> None:
        for watcher in self._watchers:
            watcher.ended(fold, history, checkpoint)

    def note(self, text: str) -> None:
        for watcher in self._watchers:
            watcher.note(text)

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        for watcher in self._watchers:
            watcher.finish(metrics)
