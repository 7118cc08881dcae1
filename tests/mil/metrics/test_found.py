"""Whether a run found something: how often it is said of labels without meaning, and of labels with one."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import cauchy, mannwhitneyu

from mil.metrics.found import FALSE_ALARMS, found, joined
from mil.pages.words import found_sentence


def _cross_validated(effect, rng, folds=5, dim=20, patients=80) -> pd.DataFrame:
    """Out-of-fold scores of the difference of class means, which learns each fold's chance from the others."""
    positive, x = np.arange(patients) % 2 == 1, rng.standard_normal((patients, dim))
    x[:, 0] += effect * positive
    fold = rng.permutation(patients) % folds
    score = np.empty(patients)
    for k in range(folds):
        learns = fold != k
        way = x[learns & positive].mean(0) - x[learns & ~positive].mean(0)
        score[~learns] = x[~learns] @ way
    label = np.where(positive, "pos", "neg")
    return pd.DataFrame(
        {"repeat": 0, "fold": fold, "patient_id": np.arange(patients), "label": label, "prob_pos": score}
    )


def test_false_alarms_are_as_rare_as_is_said_where_a_pooled_test_has_too_many():
    rng = np.random.default_rng(0)
    tables = [_cross_validated(0.0, rng) for _ in range(400)]
    alarms = np.mean([found(table, "prob_pos", "pos")["found"] for table in tables])
    assert alarms < FALSE_ALARMS + 2 * np.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / 400)

    def pooled(table):
        own = table["prob_pos"] - table.groupby("fold")["prob_pos"].transform("mean")
        return mannwhitneyu(own[table["label"] == "pos"], own[table["label"] == "neg"], alternative="greater").pvalue

    assert np.mean([pooled(table) <= FALSE_ALARMS for table in tables]) > 1.5 * FALSE_ALARMS


def test_labels_that_mean_something_are_found():
    rng = np.random.default_rng(1)
    assert np.mean([found(_cross_validated(2.0, rng), "prob_pos", "pos")["found"] for _ in range(50)]) > 0.9


def test_p_values_are_joined_by_the_cauchy_distribution():
    assert joined([0.03]) == pytest.approx(0.03)
    assert joined([0.01, 0.2, 0.6]) == pytest.approx(cauchy.sf(cauchy.isf([0.01, 0.2, 0.6]).mean()))
    assert joined([0.001, 1.0]) < 0.01


def test_a_patient_counts_once_and_one_of_two_labels_not_at_all():
    table = pd.DataFrame(
        {
            "repeat": 0,
            "fold": 0,
            "patient_id": ["a", "a", "b", "c", "d", "e", "e"],
            "label": ["pos", "pos", "pos", "neg", "neg", "pos", "neg"],
            "prob_pos": [0.9, 0.1, 0.8, 0.2, 0.6, 1.0, 0.0],
        }
    )
    expected = mannwhitneyu([0.5, 0.8], [0.2, 0.6], alternative="greater").pvalue
    assert found(table, "prob_pos", "pos") == {
        "p": pytest.approx(expected),
        "found": None,
        "least_p": pytest.approx(1 / 6),
    }


def test_what_cannot_be_tested_is_said():
    table = pd.DataFrame(
        {"repeat": 0, "fold": [0, 1], "patient_id": ["a", "b"], "label": ["pos", "neg"], "prob_pos": 0.5}
    )
    nothing = found(table, "prob_pos", "pos")
    assert nothing == {"p": None, "found": None, "least_p": None} and "cannot be tested" in found_sentence(nothing)
    assert found_sentence({"p": 0.01, "found": True}).startswith("Found something")
    assert found_sentence({"p": 0.4, "found": False}).startswith("Nothing shown")


def test_so_few_patients_that_not_even_a_perfect_order_could_be_found_are_said():
    label = np.array(["neg", "pos"] * 10)
    few = pd.DataFrame({"repeat": 0, "fold": np.arange(20) // 4, "patient_id": np.arange(20), "label": label})
    perfect = found(few.assign(prob_pos=(label == "pos") + np.arange(20) / 100), "prob_pos", "pos")
    assert perfect == {"p": pytest.approx(1 / 6), "found": None, "least_p": pytest.approx(1 / 6)}
    assert "even a perfect order of them would give p = 0.167" in found_sentence(perfect)
