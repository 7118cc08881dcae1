"""Corrected p values by hand."""

import numpy as np

from mil.diagnosis.numbers.permutation import holm


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
