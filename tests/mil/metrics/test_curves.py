"""Curves of predictions against scikit-learn and by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from mil.metrics.bootstrap import Bootstrap
from mil.metrics.curves import GRID, band, calibration_bins, precision_curves, roc_curves, scores_of


def test_precision_by_recall_equals_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.4
    scores = np.round(rng.random(60) + 0.5 * truth, 1)  # with ties
    weights = np.vstack([np.ones(60), rng.integers(0, 4, (3, 60))])
    curves = precision_curves(scores, truth, weights)
    for row, own in zip(curves, weights, strict=True):
        precision, recall, _ = precision_recall_curve(truth, scores, sample_weight=own)
        for place in (1, 50, 100, 153, 200):
            highest = np.flatnonzero(recall >= GRID[place] - 1e-9)[-1]  # scikit-learn's thresholds rise
            assert row[place] == pytest.approx(precision[highest])


def test_calibration_bins_equal_scikit_learn():
    rng = np.random.default_rng(2)
    probabilities = rng.random(200)
    labels = np.where(rng.random(200) < probabilities**2, "b", "a")
    patients = [f"p{i // 2}" for i in range(200)]
    table = pd.DataFrame(
        {"patient_id": patients, "label": labels, "prob_a": 1 - probabilities, "prob_b": probabilities}
    )
    bins = calibration_bins(scores_of(table, ["a", "b"], 1, Bootstrap(200, 0)))
    true, said = calibration_curve(labels == "b", probabilities, n_bins=10)
    assert [b.true for b in bins] == pytest.approx(true.tolist())
    assert [b.said for b in bins] == pytest.approx(said.tolist())
    assert all(b.low <= b.true <= b.high and (b.low < b.high or b.true in (0, 1)) for b in bins)
    assert sum(b.rows for b in bins) == 200


def test_sensitivity_equals_scikit_learn():
    rng = np.random.default_rng(3)
    truth = rng.random(60) < 0.4
    scores = np.round(rng.random(60) + 0.5 * truth, 1)  # with ties
    weights = np.vstack([np.ones(60), rng.integers(0, 4, (3, 60))])
    for row, own in zip(roc_curves(scores, truth, weights), weights, strict=True):
        false, true, _ = roc_curve(truth, scores, sample_weight=own, drop_intermediate=False)
        assert row == pytest.approx(np.interp(GRID, false, true))


def test_a_band_leaves_out_draws_without_a_curve():
    curves = np.vstack([np.zeros(201), np.full((39, 201), 0.25), np.full((1, 201), 0.75), np.full((1, 201), np.nan)])
    low, high = band(curves)
    assert (low == 0.25).all() and high == pytest.approx(0.2625)  # the 97.5th percentile of 39 and one
    assert band(curves[[0, -1]]) is None


def test_classes_without_a_slide_or_without_another_one_have_no_curve():
    table = pd.DataFrame({"patient_id": ["p", "q"], "label": ["a", "b"], "prob_a": 0.5, "prob_b": 0.3, "prob_c": 0.2})
    assert scores_of(table, ["a", "b", "c"], None, Bootstrap(10)).shown == [0, 1]
    assert scores_of(table[:1], ["a", "b", "c"], None, Bootstrap(10)).shown == []
    assert scores_of(table, ["a", "b", "c"], 1, Bootstrap(10)).shown == [1]
