"""Suspicious labels by hand."""

import numpy as np

from mil.diagnosis.numbers.suspects import cleaned_probabilities, confident_learning


def test_confident_learning_by_hand():
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.95])
    found = confident_learning(np.stack([1 - p, p], axis=1), np.array([1, 1, 1, 0, 0, 0]))
    assert found.order[0] == 5 and found.order[1] == 2
    assert found.counted.tolist() == [False, False, True, False, False, True]


def test_probabilities_depend_neither_on_labels_nor_on_features_of_other_held_out_slides():
    rng = np.random.default_rng(0)
    vectors, labels, patients = rng.normal(size=(40, 5)), rng.integers(0, 2, 40), np.arange(40).astype(str)
    train, test = np.arange(30), np.arange(30, 40)
    probabilities = cleaned_probabilities(vectors, labels, patients, [(train, test)])
    vectors[35:] = 20 - 3 * vectors[35:]
    labels[30:] = 1 - labels[30:]
    for before, after in zip(
        probabilities, cleaned_probabilities(vectors, labels, patients, [(train, test)]), strict=True
    ):
        np.testing.assert_array_equal(before[30:35], after[30:35])
