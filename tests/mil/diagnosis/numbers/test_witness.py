"""The bound on the share of unlike patches stays below the truth, and near it where unlike patches stand out."""

from dataclasses import replace

import numpy as np
import pytest

from mil.diagnosis.numbers import witness
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.witness import witness_rate


@pytest.mark.parametrize(
    ("rate", "patches", "shift", "near"),
    [(0.0, 30, 3, 0.0), (0.5, 30, 3, 0.35), (0.1, 100, 3, 0.0), (1.0, 30, 3, 0.8), (1.0, 30, 1, 0.0)],
)
def test_the_true_witness_rate_is_not_below_the_bound(build, rate, patches, shift, near):
    inputs = build("", witness=rate, patches=patches, shift=shift)
    found = witness_rate(inputs.cohort, 1, parts_of(inputs.folds), 200, 0)
    assert near <= found.at_least <= min(rate, found.seen)


def test_the_score_of_a_patch_does_not_depend_on_other_held_out_slides(clean, monkeypatch):
    cohort, fold = clean.cohort, parts_of(clean.folds)[0]
    monkeypatch.setattr(witness, "best_bin", lambda scores, *rest: scores)
    moved, features, targets = fold[1][::2], list(cohort.features), cohort.targets.copy()
    for i in moved:
        features[i] = 20 - 3 * features[i]
    targets[moved] = 1 - targets[moved]
    others = replace(cohort, features=features, targets=targets)
    first, second = (witness_rate(of, 1, [fold], 200, 0) for of in (cohort, others))
    assert len(first) == len(fold[1])
    for before, after in zip(first[1::2], second[1::2], strict=True):
        np.testing.assert_array_equal(before, after)
