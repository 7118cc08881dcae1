"""The closed form against the normal equations, and AUROC within folds by hand."""

import numpy as np
import pytest

from mil.diagnosis.numbers.ridge import aurocs_within_folds, kernel, out_of_fold


def test_ridge_equals_the_normal_equations():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    patients, train, test = np.arange(24).astype(str), np.arange(18), np.arange(18, 24)
    scores = out_of_fold(kernel(x), y, patients, [(train, test)])
    scaled = (x - x.mean(0)) / x.std(0)
    centred = scaled[train] - scaled[train].mean(0)
    size = np.trace(centred @ centred.T) / 18
    each = [
        (scaled[test] - scaled[train].mean(0))
        @ np.linalg.solve(centred.T @ centred + p * size * np.eye(5), centred.T @ (y[train] - y[train].mean(0)))
        + y[train].mean(0)
        for p in (0.01, 0.1, 1.0, 10.0)
    ]
    for column in range(3):
        assert min(np.abs(scores[test, column] - own[:, column]).max() for own in each) < 1e-10


def test_auroc_is_over_pairs_within_a_fold():
    scores = np.array([[0.1], [0.9], [5.0], [6.0], [6.0]])
    truth = np.array([[False], [True], [True], [False], [False]])
    folds = [(np.arange(2), np.arange(2)), (np.arange(2), np.arange(2, 5))]
    assert aurocs_within_folds(scores, truth, folds)[0] == pytest.approx(1 / 3)


def test_no_score_depends_on_labels_that_it_is_judged_by():
    rng = np.random.default_rng(2)
    products, targets = kernel(rng.normal(size=(30, 6))), rng.integers(0, 2, (30, 4)).astype(float)
    patients, train, test = np.arange(30).astype(str), np.arange(22), np.arange(22, 30)
    scores = out_of_fold(products, targets, patients, [(train, test)])
    targets[test] = 1 - targets[test]
    np.testing.assert_array_equal(out_of_fold(products, targets, patients, [(train, test)]), scores)
