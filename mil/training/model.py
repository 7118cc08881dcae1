"""What is known of one model while it is trained, and what is kept of it."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold, Indices
from mil.tasks.task import Task


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv. Losses are means over slides."""

    epoch: int  # from 1
    learning_rate: float
    train_loss: float
    val_loss: float
    val_score: float  # the figure that the task watches
    stop_loss: float  # mean of the last validation losses, NaN while it is too early to keep an epoch

    def columns(self, task: Task) -> dict[str, float]:
        """By the names that they have in history.csv."""
        return {f"val_{task.watched}" if name == "val_score" else name: value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Kept:
    """A model's weights, and what they say of slides that they were not fitted to."""

    state: dict[str, Tensor]  # on the CPU
    answers: NDArray[np.float64]  # (n, C)
    slides: Indices  # (n,)


class Model:
    """One model of a fold, whose train and val are its own."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.history: list[Epoch] = []
        self.worst_step: list[Indices] = []  # of each epoch, the slides of the step with the highest loss
        self.best_epoch, self.best_loss = 0, math.inf
        self.best: Kept | None = None

    @property
    def kept(self) -> Kept:
        assert self.best is not None
        return self.best

    def table(self, cohort: Cohort) -> pd.DataFrame:
        """As history.csv has it."""
        table = pd.DataFrame([epoch.columns(cohort.task) for epoch in self.history])
        if self.worst_step:
            table["worst_step"] = [" ".join(cohort.bag_ids[slides]) for slides in self.worst_step]
        return table
