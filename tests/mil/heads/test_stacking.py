"""Weights of heads follow what they say of held-out slides, gently."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from mil.heads.stacking import log_probabilities, stack
from mil.tasks.calibration import calibrated, fit_calibration


def _answers(log_odds):
    return np.stack([expit(-log_odds), expit(log_odds)], axis=1)


def _drawn(n, seed, shares=(0.5, 0.5)):
    """Labels, and a head that knows them well, one that knows them a little, one that does not."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(2, n, p=shares)
    signs = 2 * labels - 1
    knowing = [_answers(d * (d / 2 * signs + rng.normal(size=n)) * by) for d, by in ((2, 1), (0.7, 5))]
    return labels, [*knowing, _answers(rng.normal(size=n))]


def test_a_better_head_weighs_more_and_noise_nothing():
    labels, heads = _drawn(2000, 0)
    found, _ = stack(heads, labels)
    good, weak, noise = found.weights
    assert good > 0.8 and weak > 0.8  # log-odds of independent heads add up
    assert found.factors[1] == pytest.approx(weak / 5, rel=0.3) and found.factors[2] < 0.1
    few = stack([head[:12] for head in heads], labels[:12])[0].weights
    assert np.abs(few - 1 / 3).max() < np.abs(np.array([good, weak, noise]) - 1 / 3).max()


def test_equal_heads_weigh_the_same_and_are_no_surer_together():
    labels, (good, *_) = _drawn(500, 1)
    found, _ = stack([good] * 4, labels)
    assert found.weights == pytest.approx(np.full(4, found.weights.mean()), abs=1e-3)
    assert found.weights.sum() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1)])
def test_the_stack_is_no_worse_than_its_best_head_on_others(shares):
    labels, heads = _drawn(300, 2, shares)
    (found, _), (truth, others) = stack(heads, labels), _drawn(5000, 3, shares)
    prior = np.bincount(labels) / len(labels)

    def judged(of_train, of_others):
        return log_loss(truth, calibrated(of_others, *fit_calibration(of_train, labels, prior)))

    def stacked(of):
        return softmax(found.logits(np.stack([log_probabilities(one) for one in of])), axis=1)

    single = [judged(own, other) for own, other in zip(heads, others, strict=True)]
    assert judged(stacked(heads), stacked(others)) < min(single)


def test_what_a_slide_is_told_for_calibration_does_not_know_its_label():
    rng, labels, first = np.random.default_rng(4), np.arange(60) % 2, [0, 1]  # which are of one part
    heads = [_answers(by * (2 * labels - 1) + rng.normal(size=60)) for by in (0.5, 1)]
    found, held_out = stack(heads, labels)
    changed = labels.copy()
    changed[first] = 1, 0
    other, of_other = stack(heads, changed)
    np.testing.assert_array_equal(held_out[first], of_other[first])
    assert (held_out != of_other).any() and (found.weights != other.weights).any()


def test_calibrated_on_that_a_stack_of_heads_that_know_nothing_is_not_sure():
    rng, slopes = np.random.default_rng(5), []
    for _ in range(20):
        labels, noise = np.arange(40) % 2, [_answers(rng.normal(size=40)) for _ in range(6)]
        found, held_out = stack(noise, labels)
        in_sample = found.logits(np.stack([log_probabilities(of) for of in noise]))
        even = np.array([0.5, 0.5])
        slopes.append([1 / fit_calibration(softmax(said, axis=1), labels, even)[0] for said in (held_out, in_sample)])
    honest, flattered = np.mean(slopes, axis=0)
    assert honest < 0.8 * flattered
