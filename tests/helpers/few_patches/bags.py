"""Bags, the truth of their patches, and the folds in which they are tested."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mil.cohort.splits import Fold

FOLDS = 4


@dataclass(frozen=True)
class Bags:
    tiles: list[NDArray[np.float32]]  # (N, D) of each bag
    rare: list[NDArray[np.bool_]]  # (N,)
    labels: NDArray[np.int64]  # (B,)
    patients: NDArray[np.str_] | None = None  # (B,), no one of whom is on two sides of a fold; None: bags are unrelated
    seed: int = 0  # of the folds
    learned_from: int | None = None  # bags, half of them positive; None: all that are not tested

    def folds(self) -> list[Fold]:
        return [
            Fold(k, 0, k, self._some(train), np.array([], np.int64), test)
            for k, (train, test) in enumerate(self._splits())
        ]

    def _splits(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if self.patients is None:
            return StratifiedKFold(FOLDS, shuffle=True, random_state=self.seed).split(self.labels, self.labels)
        by_patient = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=self.seed)
        return by_patient.split(self.labels, self.labels, self.patients)

    def _some(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.learned_from is None:
            return train
        order = np.random.default_rng(self.seed).permutation(train)
        each = [order[self.labels[order] == label][: self.learned_from // 2] for label in (0, 1)]
        return np.sort(np.concatenate(each))
