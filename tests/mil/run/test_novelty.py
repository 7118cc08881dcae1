"""Slides like the training slides stay below the limit, others exceed it; leaving out equals fitting again."""

import numpy as np
import pytest

from mil.run.novelty import _left_out_distances, describe_training_slides


def _cohort(rng, slides=60, dim=20, rank=3):
    """Means (S, D) with a few strong directions and patients of two slides each."""
    means = rng.normal(size=(slides, rank)) @ (3 * rng.normal(size=(rank, dim))) + rng.normal(size=(slides, dim))
    return means, np.repeat(np.arange(slides // 2), 2).astype(str)


def test_the_distance_is_mahalanobis_with_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    for slides, dim in ((60, 20), (12, 40)):  # more slides than features, and fewer
        means, patients = _cohort(rng, slides, dim)
        found = describe_training_slides(means, patients)
        z = (means - means.mean(0)) / means.std(0)
        empirical = z.T @ z / slides
        alpha = found.floor / (np.trace(empirical) / dim)
        covariance = (1 - alpha) * empirical + found.floor * np.eye(dim)
        new = 2 * rng.normal(size=dim)
        y = (new - means.mean(0)) / means.std(0)
        expected = np.sqrt(y @ np.linalg.solve(covariance, y)) / found.limit
        assert 0 < alpha < 1 and found.distance(new) == pytest.approx(expected, rel=1e-4)


def test_leaving_a_patient_out_equals_fitting_without_it():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(21, 6))
    z -= z.mean(axis=0)
    patients, share, floor = np.array(list("aabcccdefghijklmnopqr")), 0.9 / 21, 0.3
    _, singular, axes = np.linalg.svd(z, full_matrices=False)
    got = _left_out_distances(z @ axes.T, patients, share * singular**2 + floor, share)
    for i, patient in enumerate(patients):
        others = z[patients != patient]
        centred = others - others.mean(axis=0)
        covariance = share * centred.T @ centred + floor * np.eye(6)
        y = z[i] - others.mean(axis=0)
        assert got[i] == pytest.approx(np.sqrt(y @ np.linalg.solve(covariance, y)))


@pytest.mark.parametrize(("slides", "dim"), [(30, 200), (200, 30)])
def test_new_slides_of_the_same_kind_are_rarely_flagged_and_foreign_ones_are(slides, dim):
    rng, flagged = np.random.default_rng(2), []
    for _ in range(10):
        means, _ = _cohort(rng, slides + 50, dim)
        found = describe_training_slides(means[:slides], np.arange(slides).astype(str))
        flagged += [found.distance(mean) > 1 for mean in means[slides:]]
        foreign = means[slides:] + 4 * means.std(0) * rng.choice([-1, 1], size=dim)  # another stain or encoder
        assert all(found.distance(mean) > 1 for mean in foreign)
    assert np.mean(flagged) < 0.08


def test_constant_features_and_one_patient():
    means = np.ones((4, 3)) * [1, 2, 3]
    found = describe_training_slides(means, np.array(list("abcd")))
    assert found.distance(means[0]) <= 1 < found.distance(means[0] + 1)
    with pytest.raises(ValueError, match="one patient"):
        describe_training_slides(np.eye(3), np.array(["a"] * 3))
