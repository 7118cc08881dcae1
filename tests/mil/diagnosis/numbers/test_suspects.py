"""Suspicious labels by hand."""

import numpy as np

from mil.diagnosis.numbers.suspects import confident_learning


def test_confident_learning_by_hand():
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.95])
    found = confident_learning(np.stack([1 - p, p], axis=1), np.array([1, 1, 1, 0, 0, 0]))
    assert found.order[0] == 5 and found.order[1] == 2
    assert found.counted.tolist() == [False, False, True, False, False, True]
