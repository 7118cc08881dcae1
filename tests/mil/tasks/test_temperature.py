"""The temperature heals overconfidence, leaves small parts alone, never sharpens and never changes the order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mil.tasks.temperature import calibrated, fit_temperature


def _overconfident(n, by, seed=0, classes=2):
    """Probabilities (n, C) whose logits are `by` times those that the labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    labels = (rng.random(n)[:, None] > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return softmax(by * logits, axis=1), labels


def _log_loss(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("classes", [2, 4])
def test_the_factor_of_overconfidence_is_found(classes):
    probabilities, labels = _overconfident(5000, 3.0, classes=classes)
    temperature = fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
    others, truth = _overconfident(5000, 3.0, seed=1, classes=classes)
    assert _log_loss(calibrated(others, temperature), truth) < _log_loss(others, truth) - 0.1


def test_probabilities_are_never_sharpened():
    assert fit_temperature(*_overconfident(5000, 0.3)) == 1
    assert fit_temperature(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0, 1])) == 1


def test_one_wrong_slide_among_few_does_not_make_everything_even():
    probabilities = np.array([[0.999, 0.001]] * 8 + [[0.001, 0.999]])
    few = fit_temperature(probabilities, np.zeros(9, int))
    many = fit_temperature(np.repeat(probabilities, 100, axis=0), np.zeros(900, int))
    assert 1 < few < many


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 30), classes=st.integers(2, 4), sharp=st.floats(0.1, 100))
def test_the_order_stays_and_probabilities_sum_to_one(seed, n, classes, sharp):
    probabilities, labels = _overconfident(n, sharp, seed, classes)
    temperature = fit_temperature(probabilities, labels)
    assert 1 <= temperature <= 20 + 1e-9
    after = calibrated(probabilities, temperature)
    assert after.sum(axis=1) == pytest.approx(np.ones(n))
    if classes == 2 and n:
        order = np.argsort(np.diff(np.log(np.maximum(probabilities, 1e-300)), axis=1)[:, 0], kind="stable")
        assert (np.diff(after[order, 1]) >= -1e-12).all()
    assert (after.argmax(axis=1) == probabilities.argmax(axis=1)).all()
