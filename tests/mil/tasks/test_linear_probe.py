"""The probe against its own definition in float64, solved by a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from mil.tasks.linear_probe import (
    PENALTIES,
    PENALTY,
    chosen_probe,
    fit_probe,
    probe_probabilities,
    standardised,
)


def reference(scaled, labels, penalty):
    """Logits (n, D) -> (n, C) of the optimum: class-balanced cross-entropy and a ridge without the intercept.

    Two classes: one direction, half of it for each, as scikit-learn counts the ridge.
    """
    classes, (n, d) = labels.max() + 1, scaled.shape
    weights = n / (classes * np.bincount(labels))[labels]
    rows = 1 if classes == 2 else classes

    def logits(flat, x):
        own = x @ flat[: rows * d].reshape(rows, d).T + flat[rows * d :]
        return np.column_stack([np.zeros(len(x)), own]) if classes == 2 else own

    def loss(flat):
        ridge = (flat[: rows * d] ** 2).sum() / (2 * penalty)
        return -(weights * log_softmax(logits(flat, scaled), axis=1)[np.arange(n), labels]).sum() + ridge

    start = np.zeros(rows * (d + 1))
    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}).x
    return lambda x: softmax(logits(found, x), axis=1)


def case(classes=2, slides=40, dim=5):
    rng = np.random.default_rng(classes)
    labels = rng.permutation(np.arange(slides) ** 2 % 7 % classes)  # classes of different sizes
    vectors = rng.normal(2, 3, (slides, dim)) + 2 * np.eye(classes, dim)[labels]
    return vectors, labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [PENALTIES[0], PENALTY, PENALTIES[-1]])
def test_the_probe_is_the_optimum_of_its_definition(classes, penalty):
    vectors, labels = case(classes)
    train = np.arange(30)
    scaled = standardised(vectors, train)
    np.testing.assert_allclose(scaled, (vectors - vectors[train].mean(0)) / vectors[train].std(0), rtol=1e-12)
    model = fit_probe(scaled[train], labels[train], penalty)
    expected = reference(scaled[train], labels[train], penalty)(scaled)
    np.testing.assert_allclose(probe_probabilities(model, scaled, classes), expected, atol=2e-4)


def nested(vectors, labels, parts, classes):
    train, val, test = parts
    return chosen_probe(vectors[train], labels[train], (vectors[val], labels[val]), classes)(vectors[test])


def test_a_constant_feature_counts_for_nothing():
    vectors, labels = case()
    wider = np.column_stack([vectors, np.full(len(vectors), 7.0)])
    parts = (np.arange(20), np.arange(20, 30), np.arange(30, 40))
    np.testing.assert_array_equal(nested(wider, labels, parts, 2), nested(vectors, labels, parts, 2))


def test_the_penalty_is_chosen_on_val_alone():
    vectors, labels = case()
    train, val, test = np.arange(20), np.arange(20, 30), np.arange(30, 40)
    scaled = standardised(vectors, train)
    each = [probe_probabilities(fit_probe(scaled[train], labels[train], p), scaled, 2) for p in PENALTIES]
    best = int(np.argmin([log_loss(labels[val], own[val]) for own in each]))
    assert best != PENALTIES.index(PENALTY)
    found = nested(vectors, labels, (train, val, test), 2)
    np.testing.assert_array_equal(found, each[best][test])
    changed = np.concatenate([labels[:30], 1 - labels[30:]])
    np.testing.assert_array_equal(found, nested(vectors, changed, (train, val, test), 2))
    without = nested(vectors, labels, (train, val[:0], test), 2)
    np.testing.assert_array_equal(without, each[PENALTIES.index(PENALTY)][test])


def test_a_class_that_training_lacks_has_no_probability():
    vectors, labels = case(3)
    train, test = np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)
    found = nested(vectors, labels, (train, test[:0], test), 3)
    assert (found[:, 1] == 0).all() and np.allclose(found.sum(1), 1)
