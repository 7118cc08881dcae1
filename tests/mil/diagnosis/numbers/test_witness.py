"""The bound on the share of unlike patches stays below the truth, and near it where unlike patches stand out."""

import pytest

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
