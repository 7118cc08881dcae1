"""The estimators on arrays, each against plain training, the normal equations or a sum by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from mil.diagnosis.numbers.influence import influences
from mil.diagnosis.numbers.learning_curve import power_law
from mil.diagnosis.numbers.permutation import holm
from mil.diagnosis.numbers.ridge import aurocs_within_folds, kernel, out_of_fold
from mil.diagnosis.numbers.suspects import confident_learning
from mil.tasks.linear_probe import PENALTY


@pytest.mark.parametrize(("slides", "dim"), [(40, 6), (60, 800)])  # fewer features than slides, and many more
def test_the_estimate_of_leaving_a_slide_out_equals_training_without_it(slides, dim):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(slides, dim)) * np.geomspace(3, 0.1, dim)
    truth = x[:, 0] + rng.normal(size=slides) > 0.5
    train, test = np.arange(slides - 12), np.arange(slides - 12, slides)
    changes, losses = influences(x, truth, [(train, test)])
    scaled = (x - x[train].mean(0)) / x[train].std(0)

    def plain(rows):
        """Losses of the test slides after training on these rows, to the last digit."""
        model = LogisticRegression(C=PENALTY, class_weight="balanced", tol=1e-10, max_iter=10_000)
        scores = model.fit(scaled[rows], truth[rows]).decision_function(scaled[test])
        return np.logaddexp(0, scores) - scores * truth[test]

    retrained = np.stack([plain(np.delete(train, i)) - plain(train) for i in train])
    np.testing.assert_allclose(losses[test], plain(train), atol=1e-6)
    estimated = changes[np.ix_(train, test)]
    np.testing.assert_allclose(estimated, retrained, atol=0.02 * np.abs(retrained).max())
    assert spearmanr(estimated.mean(1), retrained.mean(1)).statistic > 0.999
    assert np.isnan(changes[test]).all() and np.isnan(changes[:, train]).all()


def test_a_class_of_one_slide_cannot_lose_it():
    rng = np.random.default_rng(0)
    truth = np.arange(12) == 3
    changes, _ = influences(rng.normal(size=(12, 4)), truth, [(np.arange(10), np.arange(10, 12))])
    assert np.isnan(changes[3]).all() and np.isfinite(changes[:3, 10:]).all()


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


def test_a_power_law_is_recovered():
    n = np.array([10.0, 20, 40, 80, 160])
    np.testing.assert_allclose(power_law(n, 0.9 - 1.2 * n**-0.7, np.array([320.0])), 0.9 - 1.2 * 320**-0.7, atol=1e-6)


def test_holm_and_confident_learning_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.95])
    found = confident_learning(np.stack([1 - p, p], axis=1), np.array([1, 1, 1, 0, 0, 0]))
    assert found.order[0] == 5 and found.order[1] == 2
    assert found.counted.tolist() == [False, False, True, False, False, True]
