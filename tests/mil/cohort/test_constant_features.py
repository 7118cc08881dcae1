"""Features that are constant, or nearly, are named before training; others are not."""

from types import SimpleNamespace

import numpy as np
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.constant_features import name_constant_features


def _cohort(columns):
    features = tuple(torch.from_numpy(part).half() for part in np.split(np.column_stack(columns), 4))
    cohort = SimpleNamespace(features=features)
    cohort.moments = Cohort.moments.func(cohort)
    cohort.spread = lambda slides: Cohort.spread(cohort, slides)
    return cohort


def test_they_are_named_by_their_columns():
    rng = np.random.default_rng(0)
    varied, constant, rare, half = rng.normal(size=400), np.full(400, 3.3), np.zeros(400), np.zeros(400)
    rare[[5, 399]], half[::2] = 1, 1
    assert name_constant_features(_cohort([varied, constant, rare, half, constant])) == [
        "features (columns, from 0) that are the same in all patches, 2: 1, 4",
        "features (columns, from 0) that are the same in more than 99% of the patches, 1: 2",
    ]
    assert name_constant_features(_cohort([varied, half])) == []
