"""Whether a run found something: how often it is said of labels without meaning, and of labels with one."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from mil.metrics.found import FALSE_ALARMS, found
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


def _rate(tables) -> float:
    return float(np.mean([found(table, "prob_pos", "pos")["found"] for table in tables]))


def test_false_alarms_are_as_rare_as_is_said_where_folds_taken_as_independent_have_too_many(monkeypatch):
    rng = np.random.default_rng(0)
    tables = [_cross_validated(0.0, rng) for _ in range(200)]
    assert _rate(tables) < FALSE_ALARMS + 2 * np.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / 200)
    monkeypatch.setattr("mil.metrics.found._DEPENDENCE", 1)
    assert _rate(tables) > 1.5 * FALSE_ALARMS


def test_what_is_in_few_patients_is_found():
    rng = np.random.default_rng(1)
    assert _rate([_cross_validated(2.5, rng, patients=28) for _ in range(50)]) > 0.9  # AUROC 0.9, folds of five or six
    assert _rate([_cross_validated(0.0, rng, patients=28) for _ in range(100)]) < 2 * FALSE_ALARMS


def test_repeats_of_the_same_patients_are_no_further_patients():
    once = _cross_validated(0.7, np.random.default_rng(2))
    again = pd.concat([once, once.assign(repeat=1)])
    assert found(again, "prob_pos", "pos") == pytest.approx(found(once, "prob_pos", "pos"))


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
    expected = mannwhitneyu([0.5, 0.8], [0.2, 0.6], alternative="greater", method="asymptotic", use_continuity=False)
    perfect = mannwhitneyu([3, 4], [1, 2], alternative="greater", method="asymptotic", use_continuity=False)
    assert found(table, "prob_pos", "pos") == {
        "p": pytest.approx(expected.pvalue),
        "found": None,
        "least_p": pytest.approx(perfect.pvalue),
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
    label = np.array(["neg", "pos"] * 2)
    few = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": np.arange(4), "label": label})
    perfect = found(few.assign(prob_pos=(label == "pos") + np.arange(4) / 100), "prob_pos", "pos")
    assert perfect["p"] == perfect["least_p"] > FALSE_ALARMS and perfect["found"] is None
    assert "even a perfect order of them would give p = 0.061" in found_sentence(perfect)
