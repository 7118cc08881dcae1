"""The run directory: what is written is read back, bytes repeat, other versions are refused by name."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.feature_file import EmbeddingInfo, Embeddings
from mil.heads.bags import pack
from mil.heads.committee import joined
from mil.heads.head import HeadShape
from mil.heads.registry import build_head
from mil.metrics.bootstrap import Bootstrap
from mil.run.attention import attention_path, read_attention, read_bag
from mil.run.checkpoint import Checkpoint, fold_folder, fold_numbers, read_checkpoint, write_fold
from mil.run.ensemble import load_ensemble, load_head, predict_slide
from mil.run.layout import bags_of, clear, clear_temporaries, require_complete, write_provenance
from mil.run.novelty import read_training_slides
from mil.run.tables import (
    by_member,
    by_slide,
    read_history,
    read_metrics,
    read_patient_predictions,
    read_predictions,
    read_splits,
    write_predictions,
)
from mil.tasks.classification import Classification
from mil.tasks.registry import restored
from tiling.jobs.errors import RequestError, SlideError

GOLDEN = Path(__file__).parents[2] / "golden" / "run-v1"


def test_the_golden_run_of_version_1():
    provenance = require_complete(GOLDEN)
    assert provenance["classes"] == ["normal", "tumour"] and provenance["positive"] == "tumour"
    assert provenance["features"]["encoder"] == "resnet50" and provenance["settings"]["folds"] == 2
    assert fold_numbers(GOLDEN) == [0, 1]
    checkpoint = read_checkpoint(GOLDEN, 1)
    assert checkpoint.head == "gated-abmil" and checkpoint.task == Classification(("normal", "tumour"), 1)
    assert checkpoint.shape["dim_in"] == 3 and checkpoint.tensors["mean"].shape == (3,)
    assert 0 < checkpoint.calibration["threshold"] < 1
    assert read_history(GOLDEN, 0)["epoch"].tolist() == [1, 2]
    predictions, patients = read_predictions(GOLDEN), read_patient_predictions(GOLDEN)
    assert predictions["slide_id"].tolist() == [f"s{i:02d}" for i in range(16)]
    assert list(predictions)[:6] == ["slide_id", "patient_id", "repeat", "fold", "label", "prediction"]
    assert np.allclose(predictions["prob_normal"] + predictions["prob_tumour"], 1)
    assert patients["slides"].tolist() == [2] * 8
    assert set(read_splits(GOLDEN)["split"]) == {"train", "val", "test"}
    metrics = read_metrics(GOLDEN)
    assert metrics["counts"]["slides"] == 16 and 0 <= metrics["slide"]["auroc"]["value"] <= 1
    slide = read_attention(attention_path(GOLDEN, "s00"))
    assert slide.attention.sum() == pytest.approx(1, abs=1e-6)
    assert slide.label == "normal" and slide.task == Classification(("normal", "tumour"), 1)
    assert slide.coords.tolist()[:2] == [[0, 0], [512, 0]] and slide.patch_size_l0 == 512
    row = predictions.set_index("slide_id").loc["s00"]
    assert slide.probabilities == pytest.approx(row[["prob_normal", "prob_tumour"]].to_numpy(float))


def test_the_golden_models_still_predict():
    ensemble = load_ensemble(GOLDEN, "cpu")
    identity = {k: v for k, v in ensemble.encoder.items() if k != "dim"}
    place = dict(patch_size_px=256, patch_size_l0=512, overlap_px=0, width_l0=1, height_l0=1, mpp_l0=0.25, mpp=0.5)
    info = EmbeddingInfo(slide_id="x", store_digest="", weights="default", **identity, **place)
    features = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]], np.float16)
    got = ensemble.predict(Embeddings(features, np.zeros((2, 2), np.int64), info))
    assert got.answer == pytest.approx([0.25795, 0.74205], abs=1e-4)
    assert got.attention.sum() == pytest.approx(1)


def test_the_golden_run_of_version_2():
    golden = GOLDEN.parent / "run-v2"
    assert require_complete(golden)["settings"]["split"] == "patient"
    assert [read_checkpoint(golden, k).calibration["temperature"] for k in (0, 1)] == pytest.approx(
        [1.08887, 1.62574], abs=1e-5
    )
    assert ["temperature" in read_checkpoint(GOLDEN, k).calibration for k in (0, 1)] == [False, False]
    training, fingerprints = read_training_slides(golden)
    assert len(fingerprints) == 16 and fingerprints["s07"] == f"{7:064x}"
    assert training.distance(np.zeros(3)) == pytest.approx(0.22421, abs=1e-4) and training.limit > 3
    assert read_training_slides(GOLDEN) == (None, {})
    metrics = read_metrics(golden)
    assert [(fold["repeat"], fold["fold"]) for fold in metrics["folds"]] == [(0, 0), (0, 1)]
    assert {"value", "low", "high", "p", "p_delong", "auroc"} == set(metrics["against_mean"])
    assert {"auprc", "f1", "mcc", "brier", "ece", "auroc_delong", "f1_by_class"} <= set(metrics["patient"])
    ensemble = load_ensemble(golden, "cpu")
    identity = {k: v for k, v in ensemble.encoder.items() if k not in ("dim", "mpp")}
    place = dict(patch_size_px=256, patch_size_l0=512, overlap_px=0, width_l0=1, height_l0=1, mpp_l0=0.25, mpp=0.5)
    info = EmbeddingInfo(slide_id="x", store_digest="", weights="default", **identity, **place)
    features = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]], np.float16)
    got = ensemble.predict(Embeddings(features, np.zeros((2, 2), np.int64), info))
    assert got.answer == pytest.approx([0.26333, 0.73667], abs=1e-4)


def test_the_golden_run_of_version_3():
    golden = GOLDEN.parent / "run-v3"
    require_complete(golden)
    calibration = read_checkpoint(golden, 0).calibration
    assert calibration["bias"] == pytest.approx([0.47701747, -0.76469972], abs=1e-6)
    assert calibration["shares"] == [0.75, 0.25] and calibration["threshold"] == pytest.approx(0.63287003)
    ensemble, features = load_ensemble(golden, "cpu"), torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert np.mean([ensemble.ask(m, features).answer for m in (0, 1)], axis=0) == pytest.approx(
        [0.7489633, 0.2510367], abs=1e-5
    )
    assert read_predictions(golden)["prob_tumour"][0] == pytest.approx(0.26963855)


def test_the_golden_run_of_version_4():
    """Two members a fold, limited features."""
    golden = GOLDEN.parent / "run-v4"
    require_complete(golden)
    checkpoint = read_checkpoint(golden, 0)
    assert checkpoint.members == ("gated-abmil",) * 2 and checkpoint.shape["feature_limit"] == 8
    assert checkpoint.calibration["temperature"] == pytest.approx(1.27607674)
    assert [own["epoch"].tolist() for own in by_member(read_history(golden, 0))] == [[1, 2, 3], [1, 2, 3]]
    splits = read_splits(golden)
    assert set(splits["split"]) == {"train", "test"} and set(splits["inner"]) == {"0", "1", ""}
    ensemble, features = load_ensemble(golden, "cpu"), torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    answers = [ensemble.ask(m, features).answer[1] for m in (0, 1)]
    assert answers == pytest.approx([0.38113753, 0.25772676], abs=1e-6)
    assert read_predictions(golden)["prob_tumour"][0] == pytest.approx(0.186352, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "covariates", "expected"),
    [
        ("v4-regression", None, [48.7815106, 48.3050155]),
        ("v4-survival", None, [-0.0731928, 0.1809825]),
        ("v4-ordinal", None, [0.7154368, 0.6334891]),
        ("v4-columns", [55.0, 0, 1, 0, 0], [-0.0881577, 0.0309193]),  # survival since entry, told of age, sex
        ("v5-several", None, [0.3565782, 0.4473322]),
        ("v6-several", None, [0.2063156, 0.5065005]),
    ],
)
def test_the_golden_runs_of_further_kinds(kind, covariates, expected):
    """What they predict, and the figures of the tables that they wrote."""
    golden = GOLDEN.parent / f"run-{kind}"
    provenance = require_complete(golden)
    task, metrics = restored(provenance), read_metrics(golden)
    assert read_attention(attention_path(golden, "s00")).task == task == read_checkpoint(golden, 1).task
    ensemble, features = load_ensemble(golden, "cpu"), torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    told = None if covariates is None else np.array(covariates)
    answers = [ensemble.ask(m, features, told).answer[0] for m in (0, 1)]
    assert answers == pytest.approx(expected, abs=1e-5)
    found = task.evaluate(read_predictions(golden), Bootstrap(provenance["settings"]["bootstrap"], 0))
    figure = metrics["slide"][task.headline]
    if kind == "v4-regression":  # which held an interval of percentiles
        figure = {"value": figure["value"], "low": 12.5674417, "high": 21.6392735}
    assert found[task.headline] == pytest.approx(figure)
    assert (ensemble.columns_told is None) == (covariates is None)
    if covariates:
        assert ensemble.columns_told.names == ("age", "sex") and task.entry == "since"
        assert {"against_slide", "against_columns"} <= metrics.keys()
        assert read_checkpoint(golden, 0, alone=True).shape["covariates"] == 0


def test_another_version_is_refused_by_name(tmp_path):
    copy = shutil.copytree(GOLDEN, tmp_path / "run-v7")
    provenance = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps({**provenance, "version": 7}))
    with pytest.raises(RequestError, match=r"provenance.json: slidemil-run version 7, this program reads version 6"):
        require_complete(copy)
    (copy / "provenance.json").write_text(json.dumps({**provenance, "format": "other"}))
    with pytest.raises(RequestError, match="format is 'other', expected 'slidemil-run'"):
        require_complete(copy)
    (copy / "provenance.json").write_text("{")
    with pytest.raises(RequestError, match=r"provenance.json: not JSON of a run .Expecting.*train it again"):
        require_complete(copy)


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no run directory"):
        require_complete(tmp_path)
    write_provenance(tmp_path, {"target": "x"})
    with pytest.raises(RequestError, match="not finished; run the same train-mil command again"):
        require_complete(tmp_path)


def _checkpoint():
    tensors = {name: np.arange(4, dtype=np.float32) for name in ("weight", "bias", "mean", "std")}
    calibration = {"threshold": 0.4, "temperature": 1.0}
    return Checkpoint("mean", {"dim_in": 4}, Classification(("a", "b"), 1), calibration, tensors, ("mean",))


def test_a_fold_is_read_back_and_has_the_same_bytes_each_time(tmp_path):
    history = pd.DataFrame({"epoch": [1], "val_loss": [0.1]})
    contents = []
    for number in range(5):
        write_fold(tmp_path, number, _checkpoint(), history)
        contents.append((fold_folder(tmp_path, number) / "checkpoint.safetensors").read_bytes())
    assert len(set(contents)) == 1
    got, wanted = vars(read_checkpoint(tmp_path, 3)), vars(_checkpoint())
    for name, tensor in wanted.pop("tensors").items():
        assert (got["tensors"][name] == tensor).all()
    got.pop("tensors")
    assert got == wanted


def test_a_damaged_checkpoint_is_named(tmp_path):
    write_fold(tmp_path, 0, _checkpoint(), pd.DataFrame({"epoch": [1]}))
    (tmp_path / "fold-0" / "checkpoint.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RequestError, match=r"fold-0/checkpoint.safetensors: not a checkpoint"):
        read_checkpoint(tmp_path, 0)


def test_ids_and_labels_stay_text(tmp_path):
    table = pd.DataFrame({"slide_id": ["007"], "patient_id": ["1"], "label": ["NA"], "prob_NA": [0.1]})
    write_predictions(tmp_path, table, table)
    assert read_predictions(tmp_path).to_dict("list") == table.to_dict("list")


def test_attention_errors_name_the_file(tmp_path):
    with pytest.raises(SlideError, match=r"x.h5: no attention for this slide"):
        read_attention(tmp_path / "x.h5")
    (tmp_path / "y.h5").write_bytes(b"nothing")
    with pytest.raises(SlideError, match=r"y.h5: not a readable attention file"):
        read_attention(tmp_path / "y.h5")


def test_what_a_killed_job_left_half_written_is_removed_and_nothing_else(tmp_path):
    for name in (".provenance.json.tmp-1", "charts/.roc.png.tmp-1", "pictures/patches/.s.jpg.tmp-1", "charts/roc.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    clear_temporaries(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["roc.png"]


def test_clear_leaves_what_it_does_not_know(tmp_path):
    copy = shutil.copytree(GOLDEN, tmp_path / "run")
    (copy / "notes.csv").write_text("mine")
    (copy / "fold-notes").mkdir()
    (copy / "charts").mkdir()
    for name in ("charts/roc.pdf", "report.html", "curves.png", "roc.png"):  # the last two of earlier releases
        (copy / name).write_bytes(b"")
    clear(copy)
    assert sorted(p.name for p in copy.iterdir()) == ["fold-notes", "notes.csv"]


def test_patches_are_said_in_the_unit_of_the_slides_calibrated_log_odds():
    """What they contribute sums to the slide's logits before the bias; alone, a patch is as sure as its slide."""
    head = build_head("gated-abmil", HeadShape(3, 2, 4, 2, 0.0)).eval()
    task, features = Classification(("a", "b"), 1), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    calibration = {"threshold": 0.5, "temperature": 2.5, "bias": [0.3, -0.3]}
    got = predict_slide(head, features, torch.device("cpu"), task, calibration)
    expected = np.log(got.answer[1] / got.answer[0]) + 0.6
    assert np.diff(got.contributions.sum(axis=0)) == pytest.approx(expected, abs=1e-5)
    alone = predict_slide(head, features[:1], torch.device("cpu"), task, {**calibration, "bias": [0.0, 0.0]})
    assert np.diff(alone.patch_logits[0]) == pytest.approx(np.log(alone.answer[1] / alone.answer[0]), abs=1e-5)
    raw = predict_slide(head, features, torch.device("cpu"), task, {})
    np.testing.assert_allclose(got.patch_logits, raw.patch_logits / 2.5, rtol=1e-5)


def test_a_fold_of_several_members_is_read_back(tmp_path):
    shape = HeadShape(3, 2, 4, 2, 0.0, 8.0)
    states = [build_head("mean", shape).state_dict() for _ in range(3)]
    weights, offset = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, -1.0])
    tensors = {name: tensor.numpy() for name, tensor in joined(states, weights, offset).items()}
    task, members = Classification(("a", "b"), 1), ("mean",) * 3
    checkpoint = Checkpoint("mean", asdict(shape), task, {"threshold": None}, tensors, members)
    write_fold(tmp_path, 0, checkpoint, pd.DataFrame({"member": [0, 1, 2], "epoch": [1, 1, 1]}))
    found = read_checkpoint(tmp_path, 0)
    assert found.members == ("mean",) * 3 and [len(own) for own in by_member(read_history(tmp_path, 0))] == [1, 1, 1]
    model = load_head(found, torch.device("cpu"))
    for head, state in zip(model.heads, states, strict=True):
        assert head.feature_limit == 8 and all(torch.equal(head.state_dict()[name], state[name]) for name in state)
    bags = pack([torch.randn(5, 3), torch.randn(2, 3)])
    parts = [w * head(bags).logits for w, head in zip(weights, model.heads, strict=True)]
    torch.testing.assert_close(model(bags).logits, sum(parts) + offset)


def test_the_golden_run_of_version_5():
    """Patients as bags: a row a patient, attention by slide."""
    golden = GOLDEN.parent / "run-v5"
    assert bags_of(golden) == "patient" and bags_of(GOLDEN) == bags_of(GOLDEN.parent / "run-v4") == "slide"
    predictions, metrics = read_predictions(golden), read_metrics(golden)
    assert list(predictions)[:4] == ["patient_id", "slide_ids", "repeat", "fold"] and len(predictions) == 12
    assert by_slide(predictions)["slide_id"].tolist() == [f"s{i:02d}" for i in range(24)]
    assert read_patient_predictions(golden)["slides"].tolist() == [2] * 12 and len(read_splits(golden)) == 48
    assert metrics["slide"] is None and metrics["counts"]["slides"] == 24
    own, other = read_bag(golden, "s03")
    assert (own.slide_id, other.slide_id, own.patient_id, own.bag) == ("s03", "s02", "p01", "s02|s03")
    assert own.share + other.share == pytest.approx(1, abs=1e-6) and own.share == pytest.approx(0.573673, abs=1e-5)
    ensemble, features = load_ensemble(golden, "cpu"), torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert [ensemble.ask(m, features).answer[1] for m in (0, 1)] == pytest.approx([0.5511369, 0.5067479], abs=1e-6)
