"""Parts of folds hold all slides but those that are tested."""

import numpy as np

from mil.cohort.splits import Fold
from mil.diagnosis.numbers.folds import parts_of, within


def test_training_and_validation_go_together_and_test_stays_apart():
    fold = Fold(0, 0, 0, np.array([0, 3]), np.array([1]), np.array([2, 4]))
    [(train, test)] = parts_of([fold])
    assert train.tolist() == [0, 1, 3] and test.tolist() == [2, 4]
    left = within(fold, np.array([True, True, False, False, True]))
    assert [part.tolist() for part in (left.train, left.val, left.test)] == [[0], [1], [4]]
