"""Grades: what is read and refused, the loss against a loop, calibration, and a cohort in which grades are planted."""

import numpy as np
import pandas as pd
import pytest
import torch

from mil import train
from mil.tasks.ordinal import Ordinal
from mil.tasks.task import Target
from mil.training.config import TrainConfig
from tiling.manifest import load_table

TASK = Ordinal(("low", "mid", "high"))
FAST = dict(
    folds=3, inner_folds=3, epochs=40, embed_dim=16, attention_dim=4, bootstrap=100, device="cpu", learning_rate=0.005
)


def _read(grades, order):
    frame = pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(grades))], "grade": grades})
    return Ordinal.read(load_table(frame, needs_path=False), Target("grade", task="ordinal", order=order), "t.csv")


def test_grades_are_read_in_their_order():
    task, targets = _read(["mid", "high", "low", "mid"], "low, mid,high")
    assert task == TASK and targets.tolist() == [1, 2, 0, 1] and task.strata(targets)[0].names == TASK.grades
    assert Ordinal.restored(task.provenance()) == task and task.label(2) == "high"


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("low,high", "row 3: grade is 'mid', expected one of --order low, high"),
        ("low,mid,high,top", "no slide with features has grade = 'top', of --order"),
        ("", "--order names the grades of 'grade' from low to high, each once.*they are high, low, mid"),
        ("low,mid,low", "each once"),
    ],
)
def test_other_grades_are_refused(order, said):
    with pytest.raises(ValueError, match=said):
        _read(["low", "mid", "high"], order)


def test_an_order_goes_with_grades_alone():
    for given in (dict(task="ordinal"), dict(order="a,b")):
        with pytest.raises(ValueError, match="--order G1,G2,G3 goes with --task ordinal"):
            TrainConfig(**given)


def test_the_loss_is_a_cross_entropy_above_each_grade_with_equal_weights():
    targets = np.array([0, 0, 0, 1, 2, 2])
    logits = np.random.default_rng(0).normal(size=(6, 2))
    found = TASK.criterion("cumulative", TASK.loss_terms(targets).double())(
        torch.from_numpy(logits), torch.from_numpy(targets)
    )
    for label, row, loss in zip(targets, logits, found.tolist(), strict=True):
        expected = 0.0
        for k in range(2):
            same_side = np.mean((targets > k) == (label > k))
            chance = 1 / (1 + np.exp(-row[k] if label > k else row[k]))
            expected -= np.log(chance) / (2 * same_side)
        assert loss == pytest.approx(expected, abs=1e-6)


def test_calibration_gives_the_shares_of_the_cohort_and_never_crosses():
    targets = np.repeat([0, 1, 2], [60, 30, 10])
    nothing = TASK.calibrate(np.empty((0, 2)), targets[:0], targets)
    assert TASK.calibrated(np.full((1, 2), 0.5), nothing)[0] == pytest.approx([0.4, 0.1])
    rng = np.random.default_rng(1)
    answers = rng.uniform(0.01, 0.99, size=(100, 2))
    said = TASK.calibrated(answers, TASK.calibrate(answers, targets, targets))
    assert (said[:, 0] >= said[:, 1]).all() and abs(said[:, 0].mean() - 0.4) < 0.06
    assert [TASK.columns(np.array(a), {})["prediction"] for a in ([0.4, 0.1], [0.5, 0.49], [0.9, 0.8])] == [
        *TASK.grades
    ]


def test_the_loss_of_a_slide_is_of_its_own_grade():
    table = pd.DataFrame({"label": ["low", "mid", "high"], "prediction": "mid", "above_low": 0.7, "above_mid": 0.2})
    judged = TASK.judge(table)
    assert judged.shown == pytest.approx([0.3, 0.5, 0.2]) and judged.right.tolist() == [False, True, False]


@pytest.mark.parametrize("planted", [True, False])
def test_planted_grades_are_found_and_others_are_not(tmp_path, write_features, planted):
    rng, rows = np.random.default_rng(2), []
    (tmp_path / "f").mkdir()
    for i in range(72):
        grade = int(rng.integers(0, 3))
        features = rng.normal(size=(30, 6))
        features[: 6 * grade * planted, 1] += 3
        write_features(tmp_path / "f", f"s{i:02d}", features)
        rows.append((f"s{i:02d}", f"p{i // 2:02d}", TASK.grades[grade]))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "grade"])
    run = train(tmp_path / "f", table, "grade", tmp_path / "run", task="ordinal", order="low,mid,high", **FAST)
    kappa = run.metrics["slide"]["kappa"]
    if planted:
        assert kappa["low"] > 0.5 and run.metrics["slide"]["auroc_above"]["above low"]["value"] > 0.9
    else:
        assert kappa["low"] < 0 < kappa["high"] and "does not show that the model works" in run.report.read_text()
