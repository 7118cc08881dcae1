"""Temperature and bias heal overconfidence and equal class weights, leave small parts alone, never change the order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mil.tasks.calibration import calibrated, class_shares, fit_calibration
from mil.tasks.classification import Classification


def _balanced_head(n, shares, by=1.0, seed=0):
    """What a head trained with equal class weights says (n, C), `by` times too sure, and labels drawn by `shares`."""
    rng, classes = np.random.default_rng(seed), len(shares)
    labels = rng.choice(classes, n, p=shares)
    x = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax(by * 1.5 * x, axis=1), labels  # 1.5 x is the log of the densities' ratio


def _log_loss(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def _slope(probabilities, labels):
    """Of the log-odds of class 1 against the truth (Cox 1958), 1 where they are neither too sure nor too shy."""
    from sklearn.linear_model import LogisticRegression

    odds = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    return LogisticRegression(C=np.inf).fit(odds, labels).coef_[0, 0]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.95, 0.05), (0.1, 0.9), (0.7, 0.2, 0.1)])
@pytest.mark.parametrize("by", [1.0, 3.0])
def test_probabilities_are_true_at_the_cohorts_own_prevalence(shares, by):
    shares = np.array(shares)
    probabilities, labels = _balanced_head(4000, shares, by)
    temperature, bias = fit_calibration(probabilities, labels, shares)
    assert temperature == pytest.approx(by, rel=0.15)
    others, truth = _balanced_head(4000, shares, by, seed=1)
    made = calibrated(others, temperature, bias)
    assert made.mean(0) == pytest.approx(np.bincount(truth) / 4000, abs=0.02)
    ideal = calibrated(others, by, np.log(len(shares) * shares))
    assert _log_loss(made, truth) == pytest.approx(_log_loss(ideal, truth), abs=0.01)
    if len(shares) == 2:
        assert 0.8 < _slope(made, truth) < 1.25
        assert np.square(made[:, 1] - truth).mean() < truth.mean() * (1 - truth.mean())


def test_without_validation_the_shares_alone_shift():
    probabilities, labels = _balanced_head(4000, (0.9, 0.1))
    temperature, bias = fit_calibration(probabilities[:0], labels[:0], class_shares(labels, 2))
    assert temperature == 1 and calibrated(probabilities, 1, bias).mean(0)[1] == pytest.approx(0.1, abs=0.015)
    assert calibrated(np.array([0.5, 0.5]), 1, bias)[1] == pytest.approx(labels.mean())


def test_a_head_that_knows_the_prevalence_already_is_brought_back():
    shares = np.array([0.9, 0.1])
    probabilities, labels = _balanced_head(2000, shares)
    known = calibrated(probabilities, 1, np.log(2 * shares))
    temperature, bias = fit_calibration(known, labels, shares)
    assert calibrated(known, temperature, bias)[:, 1].mean() == pytest.approx(labels.mean(), abs=0.01)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1)])
def test_a_shy_head_is_made_as_sure_as_it_may_be(shares):
    shares = np.array(shares)
    fitted = fit_calibration(*_balanced_head(5000, shares, 0.3), shares)
    others, truth = _balanced_head(5000, shares, 0.3, seed=1)
    assert fitted[0] == pytest.approx(0.3, rel=0.1)
    assert 0.9 < _slope(calibrated(others, *fitted), truth) < 1.1


def test_a_few_slides_that_are_all_right_do_not_give_certainty():
    probabilities, shares = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0.5, 0.5])
    fitted = fit_calibration(probabilities, np.array([0, 1]), shares)
    assert 0.5 < fitted[0] < 1 and calibrated(probabilities, *fitted).max() < 0.99


def test_a_head_that_knows_nothing_says_the_share_of_each_class():
    """However its values are spread, as those of trees that were told to weigh a rare class more."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], [285, 15])
    p = rng.beta(2, 30, 300)
    probabilities = np.stack([1 - p, p], axis=1)
    made = calibrated(probabilities, *fit_calibration(probabilities, labels, class_shares(labels, 2)))[:, 1]
    assert made.mean() == pytest.approx(0.05, abs=0.005)
    assert np.square(made - labels).mean() < 1.01 * 0.05 * 0.95


def test_one_wrong_slide_among_few_does_not_make_everything_even():
    probabilities, shares = np.array([[0.999, 0.001]] * 8 + [[0.001, 0.999]]), np.array([0.5, 0.5])
    few, _ = fit_calibration(probabilities, np.zeros(9, int), shares)
    many, _ = fit_calibration(np.repeat(probabilities, 100, axis=0), np.zeros(900, int), shares)
    assert 1 < few < many


def test_another_prevalence_moves_odds_and_threshold_alike():
    """A cohort of another clinic: as true there as here, and the same slides are called positive."""
    task, shares = Classification(("normal", "tumour"), 1), np.array([0.7, 0.3])
    calibration = task.calibrate(*_balanced_head(4000, shares), np.repeat([0, 1], [70, 30]))
    rare = task.for_prevalence(calibration, 0.03)
    assert rare["shares"] == [0.97, 0.03] and rare["temperature"] == calibration["temperature"]
    probabilities, labels = _balanced_head(20_000, (0.97, 0.03), seed=1)
    here, there = (task.calibrated(probabilities, c) for c in (calibration, rare))
    assert there[:, 1].mean() == pytest.approx(labels.mean(), abs=0.003) and here[:, 1].mean() > 0.1
    assert ((here[:, 1] >= calibration["threshold"]) == (there[:, 1] >= rare["threshold"])).all()
    back = task.for_prevalence(rare, 0.3)
    assert back["bias"] == pytest.approx(calibration["bias"]) and back["threshold"] == pytest.approx(
        calibration["threshold"]
    )


def test_a_prevalence_needs_a_positive_class_and_the_shares_of_training():
    with pytest.raises(ValueError, match="3 classes, of which none is positive"):
        Classification(("a", "b", "c"), None).for_prevalence({"threshold": None}, 0.1)
    with pytest.raises(ValueError, match="an earlier release trained the run"):
        Classification(("a", "b"), 1).for_prevalence({"threshold": 0.5, "temperature": 1.0}, 0.1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 30), classes=st.integers(2, 4), sharp=st.floats(0.1, 100))
def test_the_order_stays_and_probabilities_sum_to_one(seed, n, classes, sharp):
    shares = np.random.default_rng(seed).dirichlet(np.ones(classes)) * 0.9 + 0.1 / classes
    probabilities, labels = _balanced_head(n, shares, sharp, seed)
    temperature, bias = fit_calibration(probabilities, labels, shares)
    assert 1 / 20 - 1e-9 <= temperature <= 20 + 1e-9 and np.isfinite(bias).all()
    after = calibrated(probabilities, temperature, bias)
    assert after.sum(axis=1) == pytest.approx(np.ones(n))
    if classes == 2 and n:
        order = np.argsort(np.diff(np.log(np.maximum(probabilities, 1e-300)), axis=1)[:, 0], kind="stable")
        assert (np.diff(after[order, 1]) >= -1e-12).all()


def test_a_slide_is_called_positive_from_the_share_of_positive_slides_on():
    """There the balanced accuracy of true probabilities is the best, whatever the share."""
    probabilities, labels = _balanced_head(20_000, (0.8, 0.2))
    task = Classification(("no", "yes"), 1)
    calibration = task.calibrate(probabilities, labels, labels)
    assert calibration["threshold"] == pytest.approx(labels.mean())
    made = task.calibrated(probabilities, calibration)[:, 1]

    def balanced(threshold):
        return (made >= threshold)[labels == 1].mean() + (made < threshold)[labels == 0].mean()

    assert balanced(calibration["threshold"]) > max(map(balanced, np.linspace(0.02, 0.98, 49))) - 0.01
    assert task.calibrate(probabilities[:0], labels[:0], labels)["threshold"] == calibration["threshold"]
    assert Classification(("a", "b", "c"), None).calibrate(np.eye(3), np.arange(3), np.arange(3))["threshold"] is None
