"""Every figure equals scikit-learn's, and every draw equals scikit-learn on explicitly resampled data."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from mil.metrics.bootstrap import draw_weights
from mil.metrics.classification import evaluate, patch_accuracy, weighted_auprc, weighted_auroc
from mil.metrics.curves import roc_curves
from mil.metrics.difference import auroc_difference

CLASSES = ("a", "b", "c")


def _table(n=60, classes=CLASSES, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(classes), size=n)
    logits = rng.normal(size=(n, len(classes))) + signal * np.eye(len(classes))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = probabilities.round(1) / probabilities.round(1).sum(axis=1, keepdims=True)  # ties
    return pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "repeat": 0,
            "fold": 0,
            "label": np.array(classes)[labels],
            "prediction": np.array(classes)[probabilities.argmax(axis=1)],
            **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)},
        }
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 30), levels=st.integers(1, 6))
def test_a_weighted_auroc_is_that_of_the_resampled_data(seed, n, levels):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(levels, size=n) / levels, rng.integers(2, size=n).astype(bool)
    weights = draw_weights([f"p{i // 2}" for i in range(n)], 20, seed)
    assert (weights[0] == 1).all()
    aurocs, precisions = weighted_auroc(scores, truth, weights), weighted_auprc(scores, truth, weights)
    for auroc, auprc, row in zip(aurocs, precisions, weights, strict=True):
        chosen = np.repeat(np.arange(n), row.astype(int))
        if len(set(truth[chosen])) < 2:
            assert np.isnan(auroc)
        else:
            assert auroc == pytest.approx(reference.roc_auc_score(truth[chosen], scores[chosen]), abs=1e-12)
            assert auprc == pytest.approx(reference.average_precision_score(truth[chosen], scores[chosen]), abs=1e-12)


def test_draws_take_whole_patients():
    weights = draw_weights(["a", "b", "a", "c"], 50, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[1:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_two_classes_equal_scikit_learn():
    table = _table(classes=("neg", "pos"))
    got = evaluate(table, ("neg", "pos"), 1, draws=200, seed=0)
    truth, predicted = table["label"], table["prediction"]
    expected = {
        "auroc": reference.roc_auc_score(truth == "pos", table["prob_pos"]),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
        "sensitivity": reference.recall_score(truth, predicted, pos_label="pos"),
        "specificity": reference.recall_score(truth, predicted, pos_label="neg"),
        "accuracy": reference.accuracy_score(truth, predicted),
        "auprc": reference.average_precision_score(truth == "pos", table["prob_pos"]),
        "f1": reference.f1_score(truth, predicted, pos_label="pos"),
        "mcc": reference.matthews_corrcoef(truth, predicted),
        "brier": reference.brier_score_loss(truth == "pos", table["prob_pos"]),
    }
    for name, value in expected.items():
        assert got[name]["value"] == pytest.approx(value), name
        assert got[name]["low"] < value < got[name]["high"], name
    other = evaluate(table, ("neg", "pos"), 0, draws=200, seed=0)
    assert other["sensitivity"] == got["specificity"]


def test_three_classes_equal_scikit_learn():
    table = _table()
    got = evaluate(table, CLASSES, None, draws=200, seed=0)
    truth, predicted = table["label"], table["prediction"]
    probabilities = table[[f"prob_{c}" for c in CLASSES]]
    recall = reference.recall_score(truth, predicted, average=None, labels=CLASSES)
    precision = reference.precision_score(truth, predicted, average=None, labels=CLASSES)
    specificity = [reference.recall_score(truth != c, predicted != c) for c in CLASSES]
    assert got["auroc"]["value"] == pytest.approx(reference.roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert got["balanced_accuracy"]["value"] == pytest.approx(recall.mean())
    assert got["sensitivity"]["value"] == pytest.approx(recall.mean())
    assert got["specificity"]["value"] == pytest.approx(np.mean(specificity))
    assert [got["recall"][c]["value"] for c in CLASSES] == pytest.approx(recall)
    assert [got["precision"][c]["value"] for c in CLASSES] == pytest.approx(precision)
    one_hot = np.eye(3)[[CLASSES.index(c) for c in truth]]
    auprc = reference.average_precision_score(one_hot, probabilities, average=None)
    f1 = reference.f1_score(truth, predicted, average=None, labels=CLASSES)
    assert [got["auprc_by_class"][c]["value"] for c in CLASSES] == pytest.approx(auprc)
    assert [got["f1_by_class"][c]["value"] for c in CLASSES] == pytest.approx(f1)
    assert [got["specificity_by_class"][c]["value"] for c in CLASSES] == pytest.approx(specificity)
    for i, c in enumerate(CLASSES):
        assert got["auroc_by_class"][c]["value"] == pytest.approx(
            reference.roc_auc_score(truth == c, probabilities.iloc[:, i])
        )
    assert got["auprc"]["value"] == pytest.approx(auprc.mean()) and got["f1"]["value"] == pytest.approx(f1.mean())
    assert got["mcc"]["value"] == pytest.approx(reference.matthews_corrcoef(truth, predicted))
    assert got["brier"]["value"] == pytest.approx(((probabilities.to_numpy() - one_hot) ** 2).sum(axis=1).mean())
    assert "auroc_delong" not in got


@pytest.mark.parametrize("classes", [("neg", "pos"), CLASSES])
def test_folds_that_differ_in_scale_lower_the_pooled_auroc_and_not_the_mean_of_folds(classes):
    table, positive = _table(90, classes), 1 if len(classes) == 2 else None
    columns = [f"prob_{name}" for name in classes]
    table["fold"], table["repeat"] = np.arange(90) % 3, np.arange(90) // 45

    def judged(of):
        return evaluate(of, classes, positive, draws=100, seed=0)

    own = [judged(part)["auroc"]["value"] for _, part in table.groupby(["repeat", "fold"])]
    found = judged(table)
    assert found["auroc_of_folds"]["value"] == pytest.approx(np.mean(own))
    assert found["auroc_of_folds"]["low"] < np.mean(own) < found["auroc_of_folds"]["high"]
    moved = table.assign(**{name: table[name] / (1 + 9 * (table["fold"] == 0)) for name in columns})
    assert judged(moved)["auroc"]["value"] < found["auroc"]["value"] - 0.01
    assert judged(moved)["auroc_of_folds"]["value"] == found["auroc_of_folds"]["value"]
    assert "auroc_of_folds" not in judged(table[(table["fold"] == 0) & (table["repeat"] == 0)])


@pytest.mark.parametrize("classes", [("neg", "pos"), CLASSES])
def test_the_calibration_error_is_that_of_ten_bins(classes):
    table = _table(n=200, classes=classes)
    positive = 1 if len(classes) == 2 else None
    got = evaluate(table, classes, positive, draws=100, seed=0)
    columns = table[[f"prob_{c}" for c in classes]].to_numpy()
    said = columns.max(axis=1) if positive is None else columns[:, 1]
    true = (
        (np.array(classes)[columns.argmax(axis=1)] == table["label"]) if positive is None else table["label"] == "pos"
    )
    bins = np.digitize(said, np.arange(1, 10) / 10)
    expected = sum(abs(said[bins == b].sum() - true[bins == b].sum()) for b in range(10)) / 200
    assert got["ece"]["value"] == pytest.approx(expected) and got["ece"]["value"] > 0.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(6, 40), classes=st.integers(2, 4))
def test_every_figure_is_within_its_range_and_interval(seed, n, classes):
    names = tuple("abcd"[:classes])
    got = evaluate(_table(n, names, seed), names, 1 if classes == 2 else None, 100, seed)
    for name, figure in got.items():
        for one in [figure] if "value" in figure else figure.values():
            if one["value"] is not None and one["low"] is not None:
                assert (-1 if name == "mcc" else 0) <= one["low"] <= one["high"] <= (2 if name == "brier" else 1)


def test_the_interval_is_that_of_an_explicit_bootstrap():
    table = _table(classes=("neg", "pos"))
    got = evaluate(table, ("neg", "pos"), 1, draws=300, seed=7)
    values = []
    for row in draw_weights(table["patient_id"], 300, 7)[1:]:
        drawn = table.loc[np.repeat(np.arange(len(table)), row.astype(int))]
        values.append(reference.balanced_accuracy_score(drawn["label"], drawn["prediction"]))
    assert got["balanced_accuracy"]["low"] == pytest.approx(np.percentile(values, 2.5))
    assert got["balanced_accuracy"]["high"] == pytest.approx(np.percentile(values, 97.5))


def test_what_is_undefined_is_none():
    table = _table(classes=("neg", "pos"))
    table["prediction"] = "neg"
    got = evaluate(table, ("neg", "pos"), 1, draws=100, seed=0)
    assert got["precision"]["pos"] == {"value": None, "low": None, "high": None}
    single = evaluate(table[table["label"] == "pos"], ("neg", "pos"), 1, draws=100, seed=0)
    assert single["auroc"]["value"] is None and single["accuracy"]["value"] is None


def test_draws_of_a_single_class_are_left_out():
    table = _table(n=4, classes=("neg", "pos"))
    table["label"], table["prediction"] = ["neg", "neg", "pos", "pos"], ["neg", "neg", "pos", "pos"]
    got = evaluate(table, ("neg", "pos"), 1, draws=200, seed=0)  # half of the draws hold one patient only
    assert got["accuracy"] == {"value": 1, "low": 1, "high": 1}
    assert got["sensitivity"]["low"] == 1


def test_a_thousand_patients_take_less_than_two_seconds():
    table = _table(n=2000, classes=("neg", "pos"))  # two slides each
    start = time.process_time()
    evaluate(table, ("neg", "pos"), 1, draws=2000, seed=0)
    assert time.process_time() - start < 2


def test_difference_of_two_tables():
    table, noise = _table(n=200, classes=("neg", "pos"), signal=2.0), _table(n=200, classes=("neg", "pos"), seed=5)
    worse = table.assign(prob_pos=noise["prob_pos"], prob_neg=noise["prob_neg"])
    got = auroc_difference(table, worse.sample(frac=1, random_state=0), ("neg", "pos"), 1, draws=500)
    truth = table["label"] == "pos"
    expected = reference.roc_auc_score(truth, table["prob_pos"]) - reference.roc_auc_score(truth, worse["prob_pos"])
    assert got.value == pytest.approx(expected)
    assert 0 < got.low < expected < got.high and got.p < 0.01 and got.p_delong < 0.01
    same = auroc_difference(table, table, ("neg", "pos"), 1, draws=500)
    assert (same.value, same.low, same.high, same.p, same.p_delong) == (0, 0, 0, 1, 1)
    with pytest.raises(ValueError, match="same slides"):
        auroc_difference(table, worse[1:], ("neg", "pos"), 1)


def test_patch_accuracy_weighs_slides_by_their_patches():
    got = patch_accuracy(["a", "b", "c"], np.array([1, 50, 0]), np.array([2, 98, 0]), 500, 0)
    assert got["value"] == pytest.approx(51 / 100)
    assert got["low"] == pytest.approx(0.5)


def test_roc_curve_has_the_area_of_the_auroc():
    table = _table(n=300, classes=("neg", "pos"))
    truth, scores = (table["label"] == "pos").to_numpy(), table["prob_pos"].to_numpy()
    weights = draw_weights(table["patient_id"], 10, 0)
    areas = np.trapezoid(roc_curves(scores, truth, weights), dx=1 / 200, axis=1)
    assert areas == pytest.approx(weighted_auroc(scores, truth, weights), abs=0.01)
