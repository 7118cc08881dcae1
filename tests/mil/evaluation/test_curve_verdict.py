"""Each rule on a curve that shows it, on the losses of real runs, and what is said of all folds together."""

import numpy as np
import pandas as pd
import pytest

from mil.evaluation.curve_verdict import REMEDIES, Verdict, judge_all, judge_fold

EPOCHS = 60
T = np.arange(EPOCHS)
LEARNED = 0.7 * np.exp(-T / 8) + 0.01
FLAT = np.full(EPOCHS, 0.7)
NOISE = np.random.default_rng(0).normal(size=EPOCHS)


def _history(train, val):
    return pd.DataFrame({"epoch": np.arange(1, len(train) + 1), "train_loss": train, "val_loss": val})


@pytest.mark.parametrize(
    ("train", "val", "epochs", "name"),
    [
        (LEARNED, 0.4 * LEARNED / 0.71 + 0.3, EPOCHS, "fine"),
        (LEARNED + 0.01 * NOISE, 0.8 * LEARNED + 0.1 + 0.02 * NOISE, EPOCHS, "fine"),
        (LEARNED[:4], LEARNED[:4], EPOCHS, "too short"),
        (FLAT, FLAT, EPOCHS, "does not learn"),
        (0.7 - 0.0005 * T, 0.7 - 0.0005 * T, EPOCHS, "does not learn"),
        (LEARNED, FLAT + 0.02 * T, EPOCHS, "overfits from the start"),
        (LEARNED, FLAT, EPOCHS, "overfits from the start"),
        (LEARNED, 0.7 - 0.03 * np.minimum(T, 10) + 0.01 * np.maximum(T - 10, 0), EPOCHS, "overfits"),
        (0.7 - 0.008 * T, 0.7 - 0.007 * T, EPOCHS, "stopped too early"),
        (0.7 - 0.008 * T, 0.7 - 0.007 * T, EPOCHS + 1, "fine"),  # it was patience that stopped it
        (LEARNED, np.abs(0.5 + 0.3 * NOISE), EPOCHS, "unstable"),
        (np.abs(0.5 + 0.2 * NOISE), LEARNED, EPOCHS, "unstable"),
        (0.7 + 0.02 * T, FLAT, EPOCHS, "unstable"),
    ],
)
def test_every_rule_on_a_curve_that_shows_it(train, val, epochs, name):
    assert judge_fold(_history(train, val), epochs).name == name


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_verdicts_do_not_depend_on_the_kind_of_loss(scale):
    for train, val in ((LEARNED, FLAT), (LEARNED, LEARNED), (FLAT, FLAT), (LEARNED, np.abs(0.5 + 0.3 * NOISE))):
        plain = judge_fold(_history(train, val), EPOCHS)
        assert judge_fold(_history(scale * train, scale * val), EPOCHS).name == plain.name


def test_one_odd_epoch_decides_nothing():
    spike = LEARNED.copy()
    spike[30] += 1.0
    assert judge_fold(_history(LEARNED, spike), EPOCHS).name == "fine"


def test_the_sentence_names_the_numbers():
    said = judge_fold(_history(LEARNED, FLAT + 0.02 * T), EPOCHS).said
    assert said == "training loss from 0.71 to 0.0104, validation loss from 0.7 to 0.7 in epoch 1, which was kept"


def test_a_fold_is_judged_at_the_epoch_that_was_kept_and_not_at_a_lucky_one():
    val = FLAT.copy()
    val[3] = 0.2  # the first fifth is not kept
    smoothed = pd.Series(val).rolling(3, min_periods=1).mean().where(T >= 11)
    smoothed[40] = 0.69
    verdict = judge_fold(_history(LEARNED, val).assign(stop_loss=smoothed), EPOCHS)
    assert verdict.name == "overfits from the start" and "from 0.7 to 0.7 in epoch 41, which was kept" in verdict.said


def test_overall_most_folds_count_and_of_a_tie_the_more_serious():
    folds = {name: Verdict(name, "") for name in REMEDIES}
    assert judge_all([folds["fine"], folds["fine"], folds["unstable"]]) == "fine"
    assert judge_all([folds["fine"], folds["overfits"]]) == "overfits"
    assert judge_all([folds["overfits"], folds["unstable"], folds["fine"]]) == "unstable"
