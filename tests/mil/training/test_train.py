"""Training finds what is there and nothing else, repeats to the byte, and survives a kill."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from mil.cohort.cohort import load_cohort
from mil.cohort.splits import Fold, make_folds
from mil.heads.bags import pack
from mil.heads.dropout import Noise
from mil.heads.registry import HEADS, heads_of
from mil.report.report import write_report
from mil.run.attention import attention_path, read_attention
from mil.run.checkpoint import fold_numbers, read_checkpoint
from mil.run.ensemble import load_ensemble, load_head, predict_slide
from mil.run.layout import LOCK, is_complete
from mil.run.tables import (
    by_member,
    read_history,
    read_metrics,
    read_patient_predictions,
    read_predictions,
    read_splits,
)
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.descent import epoch_order
from mil.training.display import Display
from mil.training.plan import _groups, can_stack, plan_training
from mil.training.stack import Stack
from mil.training.trainer import train_folds
from tiling.jobs.errors import RequestError

FAST = dict(epochs=60, learning_rate=0.003, batch_slides=4, embed_dim=16, attention_dim=8, bootstrap=200, device="cpu")
FEW = FAST | dict(folds=3, inner_folds=3)
COMPARED = (
    *("predictions.csv", "predictions_patient.csv", "metrics.json", "provenance.json", "splits.csv"),
    "training.safetensors",
)


def _train(table, out, watcher=None, **settings):
    config = TrainConfig(**{**FAST, **settings})
    assert not train_mil(table.parent, table, "diagnosis", out, config, watcher).unreadable
    return read_metrics(out)


def _content(out):
    files = [*(out / name for name in COMPARED), *sorted(out.glob("fold-*/*")), *sorted(out.glob("attention/*"))]
    files += [*sorted(out.glob("charts/*")), out / "report.html"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, planted):
    out = tmp_path_factory.mktemp("runs") / "attention"
    return out, _train(planted, out, **FEW)


def test_the_planted_signal_is_found(trained):
    _, metrics = trained
    assert metrics["slide"]["auroc"]["value"] > 0.9 and metrics["patient"]["auroc"]["value"] > 0.9
    assert metrics["slide"]["balanced_accuracy"]["value"] > 0.8
    assert metrics["counts"]["slides"] == 40 and metrics["counts"]["patients"] == 20


def test_a_head_with_its_own_recipe_finds_it_too(tmp_path, planted, monkeypatch):
    monkeypatch.setattr("mil.heads.zoo.bag_stats._TREES", 20)
    metrics = _train(planted, tmp_path / "run", head="bag-stats", folds=2)
    assert metrics["slide"]["auroc"]["value"] > 0.8


def test_a_head_that_cannot_be_stacked_trains_alone(tmp_path, make_cohort):
    _train(make_cohort(tmp_path / "f", slides=16), tmp_path / "run", head="transmil", folds=2, epochs=2)
    assert fold_numbers(tmp_path / "run") == [0, 1]


def test_attention_is_on_the_planted_patches(trained, planted):
    out, _ = trained
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    ranks = []
    for slide_id, features, label in zip(cohort.slide_ids, cohort.features, cohort.labels, strict=True):
        slide = read_attention(attention_path(out, slide_id))
        assert slide.attention.sum() == pytest.approx(1, abs=1e-5)
        if label:
            planted_patches = features[:, 0].argsort(descending=True)[:2]
            ranks.append(slide.attention[planted_patches].sum() / slide.attention.mean() / 2)
    assert np.median(ranks) > 2


def test_copied_labels_do_worse_and_say_how_wrong_they_are(tmp_path, planted, trained):
    _, attention = trained
    copied = _train(planted, tmp_path / "copy", **FEW, head="patch-label-copy")
    assert copied["slide"]["auroc"]["value"] < attention["slide"]["auroc"]["value"]
    assert 0.4 < copied["patch"]["accuracy"]["value"] < 0.65
    assert "patch" not in attention


def test_permuted_labels_teach_nothing(tmp_path, planted):
    frame = pd.read_csv(planted)
    per_patient = frame.groupby("patient_id")["diagnosis"].first()
    permuted = dict(zip(per_patient.index, np.random.default_rng(3).permutation(per_patient), strict=True))
    table = tmp_path / "permuted.csv"
    frame.assign(diagnosis=frame["patient_id"].map(permuted)).to_csv(table, index=False)
    config = TrainConfig(**{**FEW, "epochs": 5})
    train_mil(planted.parent, table, "diagnosis", tmp_path / "r", config)
    metrics = read_metrics(tmp_path / "r")
    for level in ("slide", "patient"):
        assert metrics[level]["auroc"]["low"] < 0.5 < metrics[level]["auroc"]["high"]


def test_the_same_seed_gives_the_same_bytes(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=16)
    settings = dict(folds=2, repeats=2, epochs=3)
    _train(table, tmp_path / "a", **settings)
    _train(table, tmp_path / "b", **settings)
    assert len(_content(tmp_path / "a")) == len(COMPARED) + 2 * 4 + 16 + 2 * (4 + 3) + 1
    assert _content(tmp_path / "a") == _content(tmp_path / "b")
    _train(table, tmp_path / "c", **settings, seed=1)
    assert _content(tmp_path / "c")["predictions.csv"] != _content(tmp_path / "a")["predictions.csv"]


@pytest.mark.parametrize(
    "head", sorted(set(HEADS) - {"needle", "bag-stats", "linear", "transmil"})
)  # own recipes; cannot be stacked
def test_models_trained_together_equal_models_trained_alone(planted, head):
    """One packed pass over all slides with stacked weights, against each model's own slides only."""
    settings = dict(epochs=10, patience=1, folds=4, inner_folds=2, learning_rate=0.02)
    config = TrainConfig(**{**FAST, "head": head, **settings})
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    folds = make_folds(cohort, config.split_plan())
    cpu = torch.device("cpu")
    plan = plan_training(cohort, folds, config, cpu)
    assert can_stack(head, plan.shape, cohort) and plan.groups == (tuple(folds),)
    together = train_folds(cohort, folds, config, cpu, lambda *_: None, plan)
    alone = [train_folds(cohort, [fold], config, cpu, lambda *_: None, plan)[0] for fold in folds]
    if head == "gated-abmil":
        assert len({len(history) for _, history in alone}) > 1  # some stopped before others
    for (checkpoint, history), (expected, expected_history) in zip(together, alone, strict=True):
        pd.testing.assert_frame_equal(history, expected_history, rtol=1e-3)  # rounding, made larger by ten epochs
        assert checkpoint.calibration["threshold"] == pytest.approx(expected.calibration["threshold"], abs=1e-4)
        ours, theirs = (load_head(c, cpu) for c in (checkpoint, expected))
        for features in cohort.features:
            answers = [predict_slide(head, features, cpu, checkpoint.task, {}).answer for head in (ours, theirs)]
            np.testing.assert_allclose(*answers, atol=1e-3)


def test_features_are_standardised_with_the_training_part(planted):
    """Each member's own."""
    config = TrainConfig(**{**FAST, "epochs": 2})
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, torch.device("cpu"))
    ((alone, history),) = train_folds(cohort, folds[1:2], config, torch.device("cpu"), lambda *_: None, plan)
    for m, member in enumerate(folds[1].members):
        patches = np.concatenate([cohort.features[i].double().numpy() for i in member.train])
        assert alone.tensors[f"members.{m}.mean"] == pytest.approx(patches.mean(axis=0), abs=1e-6)
        assert alone.tensors[f"members.{m}.std"] == pytest.approx(patches.std(axis=0), rel=1e-5)
    assert history["epoch"].tolist() == [1, 2] * 5 and history["member"].tolist() == np.repeat(range(5), 2).tolist()


def test_auto_weighs_several_heads_and_says_how_much(tmp_path, planted, monkeypatch):
    monkeypatch.setattr("mil.heads.zoo.bag_stats._TREES", 20)
    monkeypatch.setattr("mil.training.display._PLAIN_EVERY_S", -1.0)
    said = io.StringIO()
    auto = dict(head="auto", folds=2, inner_folds=3, epochs=30, learning_rate=0.01)
    metrics = _train(planted, tmp_path / "run", Display(Console(file=said, width=200)), **auto)
    assert {"1", "6"} <= set(re.findall(r"model (\d+)  epoch", said.getvalue())) and "model 6 of" not in said.getvalue()
    assert metrics["slide"]["auroc"]["value"] > 0.9 and set(metrics["heads"]) == set(heads_of("auto", 2, 21))
    checkpoint = read_checkpoint(tmp_path / "run", 0)
    assert checkpoint.members == (*("mean",) * 3, *("gated-abmil",) * 3, "bag-stats", "needle")
    assert min(checkpoint.weights.values()) >= 0
    history = read_history(tmp_path / "run", 0)
    members = history.groupby("head")["member"].nunique().to_dict()
    assert members == {"bag-stats": 1, "gated-abmil": 3, "mean": 3, "needle": 1}
    slide = read_attention(attention_path(tmp_path / "run", "s03"))
    assert np.isfinite(slide.patch_logits).all() and slide.attention.sum() == pytest.approx(1, abs=1e-5)
    assert "bag-stats" in (tmp_path / "run/report.html").read_text()
    with pytest.raises(RequestError, match="needs held-out slides; give --inner-folds or --val-fraction"):
        _train(planted, tmp_path / "none", head="auto", val_fraction=0.0)


def test_auto_looks_for_a_few_patches_with_needle_where_that_is_made_for_it():
    assert heads_of("auto", 2, 20)[3:] == ("needle",) and heads_of("auto", 2, 19)[3:] == ()
    assert heads_of("auto", 3, 5000)[3:] == ("top-k",) and heads_of("mean", 2, 5000) == ("mean",)


def test_repeats_have_their_own_order_and_dropout():
    assert not (epoch_order(0, 0, 1, 40) == epoch_order(0, 1, 1, 40)).all()
    masks = [Noise(0, repeat) for repeat in (0, 1)]
    for noise in masks:
        noise.set([0], [50], 1)
    first, second = (noise.keep(0, 8, [50], 0.5) for noise in masks)
    assert not torch.equal(first, second)
    folds = [Fold(n, n // 2, n % 2, *(np.arange(3),) * 3) for n in range(6)]
    assert [[fold.number for fold in group] for group in _groups(folds, 100)] == [[0, 1], [2, 3], [4, 5]]


def test_a_folds_model_is_the_mean_of_its_members(planted):
    config, cpu = TrainConfig(**{**FAST, "epochs": 2}), torch.device("cpu")
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, cpu)
    ((checkpoint, _),) = train_folds(cohort, folds[:1], config, cpu, lambda *_: None, plan)
    model, bags = load_head(checkpoint, cpu), pack(cohort.features[:3])
    with torch.no_grad():
        whole, parts = model(bags), [head(bags) for head in model.heads]
    assert len(parts) == 5 and not torch.allclose(parts[0].logits, parts[1].logits)
    for name in ("logits", "attention", "patch_logits", "contributions"):
        torch.testing.assert_close(getattr(whole, name), sum(getattr(part, name) for part in parts) / 5)
    assert whole.class_attention is None
    slide = whole.contributions[: bags.sizes[0]].sum(0)
    torch.testing.assert_close(slide, whole.logits[0])


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=16)
    out = tmp_path / "killed"
    settings = dict(folds=4, epochs=20, patience=60, parallel_models=2)  # two groups of two
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FAST, **settings}.items()]
    code = "import torch; torch.set_num_threads(1); from mil.cli.train import main; main()"
    arguments = [str(table.parent), "--labels", str(table), "--target", "diagnosis", "--out", str(out), *flags]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (out / "fold-0").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert fold_numbers(out) and not is_complete(out) and len(fold_numbers(out)) < 4
    assert (out / "train.lock").exists()
    stamp = (out / "fold-0" / "checkpoint.safetensors").stat().st_mtime_ns
    _train(table, out, **settings)
    assert (out / "fold-0" / "checkpoint.safetensors").stat().st_mtime_ns == stamp
    _train(table, tmp_path / "whole", **settings)
    assert _content(out) == _content(tmp_path / "whole")
    assert not (out / "train.lock").exists()


def test_a_complete_run_is_left_alone_and_a_different_one_refused(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=16)
    out = tmp_path / "run"
    first = _train(table, out, folds=2, epochs=2)
    stamp = (out / "metrics.json").stat().st_mtime_ns
    assert _train(table, out, folds=2, epochs=2) == first
    assert (out / "metrics.json").stat().st_mtime_ns == stamp
    with pytest.raises(RequestError, match=r"settings\.epochs: found 2, wanted 3.*--overwrite"):
        _train(table, out, folds=2, epochs=3)
    config = TrainConfig(**{**FAST, "folds": 3, "epochs": 2})
    train_mil(table.parent, table, "diagnosis", out, replace(config, overwrite=True))
    assert fold_numbers(out) == [0, 1, 2]


def test_a_folder_of_other_things_is_not_touched(tmp_path, planted):
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(RequestError, match=r"holds other files \(thesis.docx\)"):
        _train(planted, tmp_path)


def test_a_second_job_on_the_same_run_is_refused(tmp_path, planted):
    from tiling.jobs.locks import lock

    with lock(tmp_path / LOCK), pytest.raises(RequestError, match="another train-mil is working on"):
        _train(planted, tmp_path)


def test_a_loss_that_is_no_number_names_the_slides(tmp_path, planted):
    with pytest.raises(RequestError, match=r"no longer a number in epoch \d+, with slides s\d\d"):
        _train(planted, tmp_path / "r", learning_rate=1e38)


def test_three_classes_and_patients_with_two_labels(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=36, classes=("a", "b", "c"), positives=8)
    metrics = _train(table, tmp_path / "three", folds=3)
    assert metrics["slide"]["auroc"]["value"] > 0.8
    assert read_checkpoint(tmp_path / "three", 0).calibration["threshold"] is None
    frame = pd.read_csv(table)
    frame.loc[0, "diagnosis"] = "b"  # its patient's other slide stays "a"
    frame.to_csv(table, index=False)
    mixed = _train(table, tmp_path / "mixed", folds=3, epochs=2)
    assert mixed["patient"] is None and "1 patients, p00 among them" in mixed["patient_reason"]
    patients = read_patient_predictions(tmp_path / "mixed").set_index("patient_id")
    assert patients.loc["p00", "label"] == "" and patients.loc["p01", "label"] == "b"


def test_patient_scores_are_the_mean_of_their_slides(trained):
    out, _ = trained
    slides, patients = read_predictions(out), read_patient_predictions(out)
    expected = slides.groupby("patient_id")["prob_tumour"].mean()
    assert patients.set_index("patient_id")["prob_tumour"].to_dict() == pytest.approx(expected.to_dict())


def test_predictions_use_the_threshold_of_their_fold_and_models_that_never_saw_the_slide(trained, planted):
    out, _ = trained
    predictions, splits = read_predictions(out), read_splits(out)
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    ensemble = load_ensemble(out, "cpu")
    for _, row in predictions.iterrows():
        checkpoint = read_checkpoint(out, row["fold"])
        threshold = checkpoint.calibration["threshold"]
        assert row["prediction"] == ("tumour" if row["prob_tumour"] >= threshold else "normal")
        own = splits[(splits["fold"] == row["fold"]) & (splits["patient_id"] == row["patient_id"])]
        assert set(own["split"]) == {"test"}
        i = cohort.slide_ids.tolist().index(row["slide_id"])
        head = ensemble.heads[row["fold"]]
        again = predict_slide(head, cohort.features[i], torch.device("cpu"), cohort.task, checkpoint.calibration)
        assert row["prob_tumour"] == pytest.approx(again.answer[1], abs=1e-7)


def test_the_kept_epoch_has_the_lowest_mean_validation_loss_and_is_not_among_the_first(trained, planted):
    """Of each member; the second is looked at."""
    out, _ = trained
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    fold = make_folds(cohort, TrainConfig(**FEW).split_plan())[0].members[1]
    head = load_ensemble(out, "cpu").heads[0].heads[1]
    p = np.array(
        [predict_slide(head, cohort.features[i], torch.device("cpu"), cohort.task, {}).answer for i in fold.val]
    )
    labels, train = cohort.labels[fold.val], cohort.labels[fold.train]
    weights = len(train) / (2 * np.bincount(train))
    loss = np.mean(-np.log(p[np.arange(len(labels)), labels]) * weights[labels])
    val_loss = by_member(read_history(out, 0))[1]["val_loss"]
    smoothed = val_loss.rolling(3, min_periods=1).mean()  # 5 % of 60 epochs
    assert val_loss[smoothed[11:].idxmin()] == pytest.approx(loss, abs=1e-5)  # the first 20 % are not kept


def test_an_early_lucky_epoch_is_not_kept(planted):
    """A learning rate so small that nothing is learnt: the validation loss of each epoch is chance."""
    config = TrainConfig(**{**FAST, "epochs": 10, "patience": 1, "learning_rate": 1e-9})
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, torch.device("cpu"))
    trained = train_folds(cohort, folds, config, torch.device("cpu"), lambda *_: None, plan)
    for _, history in trained:
        assert history["stop_loss"].isna().tolist()[:2] == [True, False] and len(history) >= 3


def test_without_a_validation_part_all_slides_are_learnt_from_to_the_last_epoch(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=16)
    _train(table, tmp_path / "r", folds=2, epochs=4, patience=1, val_fraction=0.0)
    assert set(read_splits(tmp_path / "r")["split"]) == {"train", "test"}
    assert len(read_history(tmp_path / "r", 1)) == 4 and "member" not in read_history(tmp_path / "r", 1)
    assert read_checkpoint(tmp_path / "r", 1).calibration["threshold"] == 0.5


def test_bf16_follows_the_same_loss_curve_in_whole_blocks_and_judges_in_float32(planted, monkeypatch):
    cohort, cpu = load_cohort(planted.parent, planted, "diagnosis"), torch.device("cpu")
    histories, patches, whole_pass = [], [], Stack.__call__

    def recorded(stack, bags, targets, terms, train):
        patches.extend([len(bags.features)] * train)
        return whole_pass(stack, bags, targets, terms, train)

    monkeypatch.setattr(Stack, "__call__", recorded)
    for precision in ("fp32", "bf16"):
        config = TrainConfig(**{**FAST, "epochs": 8, "precision": precision})
        folds = make_folds(cohort, config.split_plan())
        plan = plan_training(cohort, folds, config, cpu)
        assert plan.bf16 == (precision == "bf16")
        patches.clear()
        histories += [train_folds(cohort, folds[:1], config, cpu, lambda *_: None, plan)[0][1]]
        assert patches and all(count % 64 == 0 for count in patches) == plan.bf16
    losses = [history[["train_loss", "val_loss"]].to_numpy() for history in histories]
    gap = np.abs(losses[0] - losses[1])
    assert 0 < gap.max() < 0.02


def test_tensorboard_and_charts_are_there(trained, tmp_path, true_charts):
    out, _ = trained
    drawn = Path(shutil.copytree(out, tmp_path / "run"))
    write_report(drawn)
    assert len(list(Path(out).glob("tensorboard/fold-*/events*"))) == 3 * 3
    for name in ("learning-fold-2", "roc", "precision-recall", "calibration"):
        assert (drawn / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (drawn / "charts" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_damaged_feature_file_is_recorded_and_tells_the_exit_code(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=24)
    ids = pd.read_csv(table)["slide_id"]
    (table.parent / f"{ids[0]}.h5").write_bytes(b"damaged")
    (table.parent / f"{ids[1]}.h5").unlink()
    config = TrainConfig(**{**FAST, "epochs": 2, "folds": 2})
    assert train_mil(table.parent, table, "diagnosis", tmp_path / "r", config).unreadable
    left_out = pd.read_csv(tmp_path / "r" / "failures.csv").set_index("slide_id")["reason"]
    assert "not a readable HDF5 file" in left_out[ids[0]] and left_out[ids[1]] == "no feature file"
    provenance = (tmp_path / "r/provenance.json").read_text()
    assert json.loads(provenance)["left_out"] == sorted(ids[:2]) and str(tmp_path) not in provenance
    assert len(pd.read_csv(tmp_path / "r/predictions.csv")) == 22
