"""What a fold learns does not depend on the slides that it is judged on: not by one bit.

The pattern: the same request twice, the second time with held-out slides whose features are moved far away and whose
labels are flipped. Whatever was fitted, standardised, chosen or calibrated for the fold must come out the same.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from features.feature_file import read_embeddings, write_embeddings
from mil.cohort.cohort import load_cohort
from mil.cohort.splits import make_folds
from mil.evaluation import out_of_fold
from mil.heads.registry import AUTO, HEADS
from mil.heads.stacking import stack
from mil.heads.zoo import bag_stats
from mil.run.attention import attention_path
from mil.run.ensemble import load_head, predict_slide
from mil.run.tables import by_member, read_metrics, read_patient_predictions, read_predictions
from mil.training import command, trainer
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

FOLD, CPU = 1, torch.device("cpu")
FAST = dict(epochs=4, learning_rate=0.01, batch_slides=4, embed_dim=16, attention_dim=8, bootstrap=100, device="cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(bag_stats, "_TREES", 10)


@pytest.fixture(scope="module")
def cohort(planted):
    return load_cohort(planted.parent, planted, "diagnosis")


@pytest.fixture(scope="module", params=[0, 3], ids=["one held-out part", "inner folds"])
def folds(cohort, request):
    return make_folds(cohort, TrainConfig(folds=4, inner_folds=request.param).split_plan())


def _moved(features):
    return 20 - 3 * features


def _with_others(cohort, slides):
    features, targets = list(cohort.features), cohort.targets.copy()
    for i in slides:
        features[i] = _moved(features[i])
    targets[slides] = 1 - targets[slides]
    return replace(cohort, features=features, targets=targets)


def _learnt(cohort, folds, head):
    """Checkpoint and history of one fold, trained beside another where the head allows it."""
    config, folds = TrainConfig(**FAST, head=head), folds[: FOLD + 1]
    plan = plan_training(cohort, folds, config, CPU)
    group = next(group for group in plan.groups if folds[FOLD] in group)
    trained = train_folds(cohort, group, config, CPU, lambda *_: None, plan)
    return trained[group.index(folds[FOLD])]


@pytest.mark.parametrize("head", [*sorted(HEADS), AUTO])
def test_a_fold_learns_nothing_from_its_test_slides(cohort, folds, head):
    """Weights, standardisation, kept epoch, temperature, what a head with its own recipe chooses, heads' weights."""
    checkpoint, history = _learnt(cohort, folds, head)
    other, other_history = _learnt(_with_others(cohort, folds[FOLD].test), folds, head)
    names = {
        name for m in range(len(checkpoint.members)) for name in (_of(checkpoint, m, "mean"), _of(checkpoint, m, "std"))
    }
    assert checkpoint.tensors.keys() == other.tensors.keys() >= names
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name], err_msg=name)
    assert checkpoint.calibration == other.calibration and checkpoint.weights == other.weights
    pd.testing.assert_frame_equal(history, other_history, check_exact=True)


def _of(checkpoint, member, name):
    return name if len(checkpoint.members) == 1 else f"members.{member}.{name}"


@pytest.mark.parametrize("member", [0, 2])
def test_no_weight_is_fitted_to_slides_that_a_model_holds_out(cohort, folds, member):
    """They choose its epoch; its standardisation and the training loss of each epoch do not know them."""
    member = min(member, len(folds[FOLD].members) - 1)
    checkpoint, history = _learnt(cohort, folds, "gated-abmil")
    other, other_history = _learnt(_with_others(cohort, folds[FOLD].members[member].val), folds, "gated-abmil")
    for name in ("mean", "std"):
        at = _of(checkpoint, member, name)
        np.testing.assert_array_equal(checkpoint.tensors[at], other.tensors[at], err_msg=at)
    own, others = by_member(history)[member], by_member(other_history)[member]
    pd.testing.assert_series_equal(own["train_loss"], others["train_loss"], check_exact=True)
    assert not own["val_loss"].equals(others["val_loss"])


@pytest.mark.parametrize("head", ["bag-stats", "needle"])
def test_a_recipe_of_its_own_does_not_know_the_validation_part(cohort, head):
    folds = make_folds(cohort, TrainConfig(folds=4, inner_folds=0).split_plan())
    checkpoint, history = _learnt(cohort, folds, head)
    other, other_history = _learnt(_with_others(cohort, folds[FOLD].val), folds, head)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name], err_msg=name)
    pd.testing.assert_series_equal(history["train_loss"], other_history["train_loss"], check_exact=True)
    assert not history["val_loss"].equals(other_history["val_loss"])


def test_a_fold_is_calibrated_on_what_each_of_its_models_held_out(cohort, monkeypatch):
    """Every training slide once, answered by the member whose validation part it is in, and by no other."""
    folds, asked = make_folds(cohort, TrainConfig(folds=4, inner_folds=3).split_plan()), []
    given = type(cohort.task).calibrate
    monkeypatch.setattr(type(cohort.task), "calibrate", lambda *of: asked.append(of[1:]) or given(*of))
    fold, (checkpoint, _) = folds[FOLD], _learnt(cohort, folds, "gated-abmil")
    answers, targets, trained_on = asked[FOLD]
    assert sorted(np.concatenate(fold.inner)) == fold.train.tolist() and len(answers) == len(fold.train)
    heads = load_head(checkpoint, CPU).heads
    for head, part in zip(heads, fold.inner, strict=True):
        expected = [predict_slide(head, cohort.features[i], CPU, cohort.task, {}).answer for i in part]
        np.testing.assert_allclose(answers[np.searchsorted(fold.train, part)], expected, atol=1e-6)
    np.testing.assert_array_equal(targets, cohort.targets[fold.train])
    np.testing.assert_array_equal(trained_on, cohort.targets[fold.train])


def test_a_recipe_is_calibrated_on_what_it_said_of_slides_that_it_had_held_out(cohort, monkeypatch):
    fold, asked, fitted = make_folds(cohort, TrainConfig(folds=4, inner_folds=3).split_plan())[FOLD], [], []
    given, fit = type(cohort.task).calibrate, bag_stats.BagStats.fit
    monkeypatch.setattr(type(cohort.task), "calibrate", lambda *of: asked.append(of[1:]) or given(*of))
    monkeypatch.setattr(bag_stats.BagStats, "fit", lambda *of: fitted.append(fit(*of)) or fitted[-1])
    _learnt(cohort, [fold] * (FOLD + 1), "bag-stats")
    answers, targets, trained_on = asked[-1]
    np.testing.assert_allclose(answers, fitted[-1].held_out.softmax(1))
    np.testing.assert_array_equal(targets, cohort.targets[fold.train])
    np.testing.assert_array_equal(trained_on, cohort.targets[fold.train])


def test_heads_are_weighed_by_what_they_said_of_held_out_slides_and_by_the_labels_of_these(cohort, monkeypatch):
    folds, asked = make_folds(cohort, TrainConfig(folds=2, inner_folds=2).split_plan()), []
    monkeypatch.setattr(trainer, "stack", lambda *of: asked.append(of) or stack(*of))
    checkpoint, _ = _learnt(cohort, folds, AUTO)
    (mean, *_), targets = asked[-1]
    np.testing.assert_array_equal(targets, cohort.targets[folds[FOLD].train])
    part, of_mean = folds[FOLD].inner[0], load_head(checkpoint, CPU).heads[0]
    expected = [predict_slide(of_mean, cohort.features[i], CPU, cohort.task, {}).answer for i in part]
    np.testing.assert_allclose(mean[np.searchsorted(folds[FOLD].train, part)], expected, atol=1e-6)


@pytest.fixture
def train(monkeypatch):
    """train(table, out, splits, head) -> the predictions of the baseline that the run is held against."""
    baselines, plain = [], out_of_fold.baseline_predictions
    monkeypatch.setattr(out_of_fold, "baseline_predictions", lambda *of: baselines.append(plain(*of)) or baselines[-1])
    monkeypatch.setattr(command, "write_report", lambda out: None)  # its pictures take most of the time

    def run(table, out, splits, head):
        train_mil(table.parent, table, "diagnosis", out, TrainConfig(**FAST, head=head, splits=str(splits)))
        return baselines[-1]

    return run


def _write_others(cohort, table, changed, folder):
    """Features and labels of the cohort, moved and flipped where `changed` (S,)."""
    for slide_id, other in zip(cohort.slide_ids, changed, strict=True):
        embeddings = read_embeddings(table.parent / f"{slide_id}.h5")
        features = _moved(embeddings.features) if other else embeddings.features
        write_embeddings(folder / f"{slide_id}.h5", replace(embeddings, features=features))
    labels = pd.read_csv(table)
    flip = labels["slide_id"].isin(cohort.slide_ids[changed])
    flipped = labels["diagnosis"].map({"normal": "tumour", "tumour": "normal"})
    labels.assign(diagnosis=labels["diagnosis"].where(~flip, flipped)).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.mark.parametrize("head", ["gated-abmil", "bag-stats"])
def test_what_a_run_says_of_a_slide_does_not_depend_on_other_test_slides(planted, cohort, folds, tmp_path, train, head):
    """Half of a fold's test patients are others: its files and all that is said of the other half stay the same."""
    ids, splits, tested = cohort.slide_ids, tmp_path / "splits.csv", cohort.patient_ids[folds[FOLD].test]
    parts = [(ids[i], part, f.fold) for f in folds[:2] for part in ("train", "val", "test") for i in getattr(f, part)]
    pd.DataFrame(parts, columns=["slide_id", "split", "fold"]).assign(repeat=0).to_csv(splits, index=False)
    changed, kept = np.unique(tested)[::2], np.unique(tested)[1::2]
    other = _write_others(cohort, planted, np.isin(cohort.patient_ids, changed), tmp_path / "features")
    runs = [tmp_path / "a", tmp_path / "b"]
    baselines = [train(table, out, splits, head) for table, out in zip((planted, other), runs, strict=True)]
    for name in ("checkpoint.safetensors", "history.csv"):
        first, second = ((run / f"fold-{FOLD}" / name).read_bytes() for run in runs)
        assert first == second, name
    for tables in (baselines, [read_predictions(run) for run in runs], [read_patient_predictions(run) for run in runs]):
        first, second = (t[(t["fold"] == FOLD) & t["patient_id"].isin(kept)].reset_index(drop=True) for t in tables)
        assert set(first["patient_id"]) == set(kept)
        pd.testing.assert_frame_equal(first, second, check_exact=True)
    for slide_id in ids[np.isin(cohort.patient_ids, kept)]:
        first, second = (attention_path(run, slide_id).read_bytes() for run in runs)
        assert first == second, slide_id
    assert read_metrics(runs[0])["against_mean"] != read_metrics(runs[1])["against_mean"]  # the others are others
