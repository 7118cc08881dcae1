"""The Python interface: what the commands do, without printing, and nothing of the process is changed afterwards."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mil import Run, predict, train
from mil.heads.bags import pack
from mil.run.checkpoint import read_checkpoint
from mil.run.ensemble import load_head
from tiling.jobs.errors import RequestError

FAST = dict(folds=2, epochs=4, embed_dim=8, attention_dim=4, bootstrap=100, device="cpu")


def test_a_run_says_what_its_files_hold(planted, tmp_path):
    told = []
    run = train(planted.parent, planted, "diagnosis", tmp_path / "run", lambda *of: told.append(of), **FAST)
    assert sorted((fold.number, fold.member, values["epoch"]) for fold, values in told) == [
        (k, m, e) for k in (0, 1) for m in range(5) for e in (1, 2, 3, 4)
    ]
    assert run.folds == [0, 1] and run.task.classes == ("normal", "tumour") and run.report.exists()
    first = sorted((fold.member, values["epoch"], values["val_auroc"]) for fold, values in told if fold.number == 0)
    columns = run.history(0)[["member", "epoch", "val_auroc"]]
    assert columns.to_numpy().tolist() == [pytest.approx(row) for row in first]
    row = run.predictions.set_index("slide_id").loc["s03"]
    slide = run.attention("s03")
    assert slide.probabilities[1] == pytest.approx(row["prob_tumour"], abs=1e-6) and slide.label == row["label"]
    assert run.metrics["counts"]["slides"] == len(run.predictions) == 40 and run.left_out.empty
    assert set(run.splits["split"]) == {"train", "test"} and set(run.splits["inner"]) == {"", *"01234"}
    assert len(run.patient_predictions) == 20


def test_the_same_call_is_the_command(planted, tmp_path, command):
    train(planted.parent, str(planted), "diagnosis", str(tmp_path / "call"), **FAST)
    flags = [part for name, value in FAST.items() for part in (f"--{name.replace('_', '-')}", value)]
    where = ["--labels", planted, "--target", "diagnosis", "--out", tmp_path / "command"]
    assert command("train-mil", planted.parent, *where, *flags).returncode == 0
    for name in ("provenance.json", "predictions.csv", "metrics.json", "fold-1/checkpoint.safetensors", "config.yaml"):
        assert (tmp_path / "call" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name


def test_a_data_frame_is_a_table(planted, tmp_path):
    frame = pd.read_csv(planted)
    of_frame = train(planted.parent, frame, "diagnosis", tmp_path / "frame", **FAST)
    of_file = train(planted.parent, planted, "diagnosis", tmp_path / "file", **FAST)
    pd.testing.assert_frame_equal(of_frame.predictions, of_file.predictions)
    with pytest.raises(RequestError, match="row 3: label 'diagnosis' is empty"):
        train(planted.parent, frame.assign(diagnosis=["a", ""] * 20), "diagnosis", tmp_path / "x", **FAST)


def test_a_run_that_was_replaced_is_read_anew(planted, tmp_path, make_cohort):
    run = train(planted.parent, planted, "diagnosis", tmp_path / "run", **FAST)
    before, slides = run.metrics, predict(run, planted.parent).table
    again = train(planted.parent, planted, "diagnosis", tmp_path / "run", overwrite=True, **{**FAST, "seed": 5})
    assert run.metrics == again.metrics != before
    pd.testing.assert_frame_equal(predict(run, planted.parent).table, predict(again, planted.parent).table)
    assert not predict(run, planted.parent).table["prob_tumour"].equals(slides["prob_tumour"])


def test_new_slides_are_judged_by_the_mean_of_all_models(planted, tmp_path, write_features):
    run = train(planted.parent, planted, "diagnosis", tmp_path / "run", **FAST)
    (tmp_path / "new").mkdir()
    features = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float16)
    write_features(tmp_path / "new", "stranger", features)
    found = predict(tmp_path / "run", str(tmp_path / "new"))
    each = []
    for number in run.folds:
        checkpoint = read_checkpoint(run.path, number)
        with torch.no_grad():
            logits = load_head(checkpoint, torch.device("cpu"))(pack([torch.from_numpy(features)])).logits[0].double()
        scaled = logits / checkpoint.calibration["temperature"] + torch.tensor(checkpoint.calibration["bias"])
        each.append(float(scaled.softmax(0)[1]))
    assert found.table["prob_tumour"].tolist() == pytest.approx([np.mean(each)]) and not found.failures
    owner = pd.DataFrame({"slide_id": ["stranger"], "patient_id": ["p00"]})
    of_a_patient = predict(run, tmp_path / "new", owner).table
    assert of_a_patient["models"].tolist() == [1] and of_a_patient["in_training"].tolist() == [True]


def test_nothing_of_the_process_is_changed(planted, tmp_path, capsys):
    def state():
        deterministic = torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()
        return deterministic, torch.get_num_threads(), dict(os.environ), torch.is_grad_enabled(), np.geterr()

    torch.set_num_threads(2)
    try:
        torch.manual_seed(1)
        expected = torch.randn(3)
        torch.manual_seed(1)
        before = state()
        run = train(planted.parent, planted, "diagnosis", tmp_path / "run", **FAST)
        predict(run, planted.parent)
        with pytest.raises(RequestError):
            train(planted.parent, planted, "nothing", tmp_path / "other", **FAST)
        assert state() == before
        assert torch.equal(torch.randn(3), expected)
    finally:
        torch.set_num_threads(1)  # as all tests of this package have it
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_wrong_requests_say_what_the_command_says(planted, tmp_path):
    with pytest.raises(RequestError, match="folds is 1, expected at least 2"):
        train(planted.parent, planted, "diagnosis", tmp_path / "run", folds=1)
    with pytest.raises(RequestError, match="colour"):
        train(planted.parent, planted, "diagnosis", tmp_path / "run", colour="blue")
    with pytest.raises(RequestError, match="no run directory"):
        _ = Run(tmp_path).metrics
    with pytest.raises(RequestError, match="no label column 'grade'"):
        train(planted.parent, planted, "grade", tmp_path / "run")


def test_the_package_is_light_until_it_is_used():
    code = "import sys, mil, mil.training.config; assert not {'torch', 'pandas', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
