"""Folds by patient as the estimators take them: positions of slides."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mil.cohort.splits import Fold

Parts = Sequence[tuple[NDArray[np.int64], ...]]  # (train, test) of each fold


def parts_of(folds: Sequence[Fold]) -> list[tuple[NDArray[np.int64], ...]]:
    """(train and val, test) of each fold, for what chooses its settings inside, or has none to choose."""
    return [(np.union1d(fold.train, fold.val), fold.test) for fold in folds]


def within(fold: Fold, shared: NDArray[np.bool_]) -> Fold:
    """The fold without the slides that are not `shared` (S,)."""
    return replace(fold, **{part: (at := getattr(fold, part))[shared[at]] for part in ("train", "val", "test")})
