"""The estimate of leaving a patient out against plain training without the patient."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from mil.diagnosis.numbers.influence import influences
from mil.tasks.linear_probe import PENALTY


@pytest.mark.parametrize(("slides", "dim"), [(40, 6), (60, 800)])  # fewer features than slides, and many more
@pytest.mark.parametrize("each", [1, 3])  # slides of a patient, of both classes
def test_the_estimate_of_leaving_a_patient_out_equals_training_without_it(slides, dim, each):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(slides, dim)) * np.geomspace(3, 0.1, dim)
    truth = x[:, 0] + rng.normal(size=slides) > 0.5
    patients = np.array([f"p{i // each:02d}" for i in range(slides)])
    train, test = np.arange(slides - 12), np.arange(slides - 12, slides)
    patients[test] = "held out"
    changes, losses = influences(x, truth, patients, [(train, test)])
    scaled = (x - x[train].mean(0)) / x[train].std(0)

    def plain(rows):
        """Losses of the test slides after training on these rows, to the last digit."""
        model = LogisticRegression(C=PENALTY, class_weight="balanced", tol=1e-10, max_iter=10_000)
        scores = model.fit(scaled[rows], truth[rows]).decision_function(scaled[test])
        return np.logaddexp(0, scores) - scores * truth[test]

    names = np.unique(patients[train])
    retrained = np.stack([plain(train[patients[train] != name]) - plain(train) for name in names])
    np.testing.assert_allclose(losses[test], plain(train), atol=1e-6)
    at = np.searchsorted(np.unique(patients), names)
    estimated = changes[np.ix_(at, test)]
    np.testing.assert_allclose(estimated, retrained, atol=0.02 * each * np.abs(retrained).max())
    assert spearmanr(estimated.mean(1), retrained.mean(1)).statistic > 0.999 - 0.01 * (each - 1)
    assert np.isnan(np.delete(changes, at, axis=0)).all() and np.isnan(changes[:, train]).all()


def test_a_class_of_one_patient_cannot_lose_it():
    rng = np.random.default_rng(0)
    truth, patients = np.isin(np.arange(12), (3, 4)), np.array([f"p{i:02d}" for i in range(12)])
    patients[4] = patients[3]
    changes, _ = influences(rng.normal(size=(12, 4)), truth, patients, [(np.arange(10), np.arange(10, 12))])
    assert np.isnan(changes[3]).all() and np.isfinite(changes[:3, 10:]).all()
