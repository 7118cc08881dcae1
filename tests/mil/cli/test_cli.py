"""train-mil and predict-mil as a user meets them: exit codes, messages, files."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from dask_threads import dask_worker

from features.feature_file import read_embeddings
from mil.cli import predict, train
from mil.metrics.difference import auroc_difference
from mil.run.checkpoint import read_checkpoint
from mil.run.ensemble import load_ensemble, predict_slide
from mil.run.layout import read_provenance
from mil.run.tables import read_metrics, read_predictions

FAST = ["--folds=2", "--epochs=3", "--embed-dim=8", "--attention-dim=4", "--bootstrap=100", "--device=cpu"]


@pytest.fixture
def call(capsys):
    """call(main, …) -> exit code, standard output, standard error."""

    def run_main(main, *arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run_main


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_cohort):
    folder = tmp_path_factory.mktemp("cli")
    table = make_cohort(folder / "features", slides=16)
    with pytest.raises(SystemExit) as caught:
        train.main(_arguments(table, folder / "run"))
    assert caught.value.code == 0
    return table, folder / "run"


def _arguments(table, out, *more):
    inputs = [str(table.parent), "--labels", str(table), "--target", "diagnosis", "--out", str(out)]
    return [*inputs, *FAST, *map(str, more)]


@pytest.mark.parametrize("module", ["mil.cli.train", "mil.cli.predict"])
def test_help_does_not_import_what_is_slow_to_load(module):
    code = (
        f"import sys, atexit; from {module} import main; "
        "atexit.register(lambda: print('torch' in sys.modules, 'sklearn' in sys.modules)); main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ") and done.stdout.rstrip().endswith("False False")


def test_the_output_says_what_was_done(trained, call):
    table, out = trained
    code, text, _ = call(train.main, *_arguments(table, out))
    assert code == 0
    assert "16 slides of 8 patients, 20 to 22 patches" in text
    assert "target diagnosis: normal 8, tumour 8; positive class: tumour" in text
    assert "complete and was made from the same request: nothing to do" in text
    assert "AUROC" in text and str(out / "metrics.json") in text


def test_a_run_can_be_repeated_from_its_own_config(trained, call, tmp_path):
    _, out = trained
    code, _, _ = call(train.main, "--config", out / "config.yaml", "--out", tmp_path / "again")
    assert code == 0
    for name in ("predictions.csv", "metrics.json", "provenance.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    assert yaml.safe_load((out / "config.yaml").read_text())["folds"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "grade"], "no label column 'grade'; the label columns are 'diagnosis'"),
        (["--labels", "nowhere.csv"], "nowhere.csv: no such slide table"),
        (["--head", "transformer"], "expected one of gated-abmil, abmil"),
        (["--folds", "9"], "9 folds need 9 patients of each class; found 4 with 'normal', 4 with 'tumour'"),
        (["--device", "cuda:99"], "--device cuda:99 is not available here"),
        (["--positive", "benign"], "--positive 'benign' is not a class"),
        (["--epochs", "5"], "settings.epochs: found 3, wanted 5"),
        (["--dropout", "2"], "dropout is 2.0"),
    ],
)
def test_a_wrong_request_ends_with_2_and_says_why(trained, call, flags, message):
    table, out = trained
    before = sorted(out.rglob("*"))
    code, _, error = call(train.main, *_arguments(table, out, *flags))
    assert code == 2 and message in error and "Traceback" not in error
    assert sorted(out.rglob("*")) == before


def test_two_runs_are_compared_on_the_same_slides(trained, call, tmp_path):
    table, out = trained
    arguments = _arguments(table, tmp_path / "mean", "--head", "mean", "--compare", out)
    code, text, _ = call(train.main, *arguments, "--splits", out / "splits.csv")
    first, second = read_predictions(tmp_path / "mean"), read_predictions(out)
    expected = auroc_difference(first, second, ("normal", "tumour"), 1, draws=100)
    assert code == 0 and f"AUROC {expected.value:+.3f} ({expected.low:+.3f} to" in text and f"against {out} (" in text
    assert "against logistic regression on mean features (" in text and "other folds" not in text
    against = read_metrics(tmp_path / "mean")["against_mean"]
    own = read_metrics(tmp_path / "mean")["slide"]["auroc"]["value"]
    assert against["value"] == pytest.approx(own - against["auroc"]["value"])
    rows = pd.read_csv(table)
    rows.loc[:3, "diagnosis"] = rows.loc[:3, "diagnosis"].to_numpy()[::-1]
    rows.to_csv(tmp_path / "other.csv", index=False)
    other = _arguments(table, tmp_path / "other", "--compare", out, "--labels", tmp_path / "other.csv")
    code, _, error = call(train.main, *other)
    assert code == 2 and "4 slides differ, s00 among them" in error and not (tmp_path / "other").exists()
    code, text, _ = call(train.main, *_arguments(table, tmp_path / "seed", "--compare", out, "--seed", "3"))
    assert code == 0 and "had other folds" in text


def test_an_unknown_key_is_refused(trained, call, tmp_path):
    table, out = trained
    (tmp_path / "wrong.yaml").write_text("epoch: 3\n")
    code, _, error = call(train.main, *_arguments(table, out), "--config", tmp_path / "wrong.yaml")
    assert code == 2 and "epoch" in error


def test_warnings_are_shown_and_the_rest_goes_on(trained, call, tmp_path):
    table, _ = trained
    more = tmp_path / "more.csv"
    rows = pd.read_csv(table)
    pd.concat([rows, pd.DataFrame([["gone", "p99", "tumour"]], columns=rows.columns)]).to_csv(more, index=False)
    code, text, _ = call(train.main, *_arguments(table, tmp_path / "r"), "--labels", more)
    assert code == 0 and "warning: labelled slides without a feature file, left out: 1: gone" in text


@pytest.fixture(scope="module")
def strangers(tmp_path_factory, write_features):
    """Four slides like those of the training cohort, of patients that it does not have, and one unlike them."""
    folder = tmp_path_factory.mktemp("strangers")
    rng = np.random.default_rng(5)
    for i in range(4):
        write_features(folder, f"new{i}", rng.normal(size=(20, 8)))
    write_features(folder, "odd", rng.normal(size=(20, 8)) + 5)
    return folder


def test_predictions_are_the_mean_over_the_fold_models(trained, call, tmp_path, strangers):
    _, out = trained
    file = tmp_path / "sub" / "new.csv"
    code, text, error = call(predict.main, out, strangers, "--out", file, "--device", "cpu")
    assert code == 0 and f"5 slides predicted by 2 models: {file}" in text
    assert "1 slides are unlike those that the run was trained on; do not rely on them: odd" in error
    got = pd.read_csv(file)
    assert list(got)[:5] == ["slide_id", "prediction", "prob_normal", "prob_tumour", "fold_spread"]
    assert list(got)[5:] == ["models", "in_training", "distance", "unlike_training"]
    assert got["unlike_training"].tolist() == [False] * 4 + [True] and not got["in_training"].any()
    ensemble = load_ensemble(out, "cpu")
    checkpoints = [read_checkpoint(out, k) for k in (0, 1)]
    for _, row in got.iterrows():
        features = torch.from_numpy(read_embeddings(strangers / f"{row['slide_id']}.h5").features)
        logits = [predict_slide(head, features, ensemble.device, ensemble.task, {}).answer for head in ensemble.heads]
        found = [checkpoint.calibration for checkpoint in checkpoints]
        odds = [(p[1] / p[0]) ** (1 / c["temperature"]) for p, c in zip(logits, found, strict=True)]
        odds = [o * np.exp(c["bias"][1] - c["bias"][0]) for o, c in zip(odds, found, strict=True)]
        each = [o / (1 + o) for o in odds]
        assert row["prob_tumour"] == pytest.approx(np.mean(each))
        assert row["prob_tumour"] + row["prob_normal"] == pytest.approx(1) and row["models"] == 2
        assert row["fold_spread"] == pytest.approx(np.std(each))
        threshold = np.mean([checkpoint.calibration["threshold"] for checkpoint in checkpoints])
        assert row["prediction"] == ("tumour" if np.mean(each) >= threshold else "normal")


def test_predictions_for_a_clinic_of_another_prevalence(trained, strangers, call, tmp_path):
    _, out = trained
    tables = []
    for name, more in (("here.csv", ()), ("rare.csv", ("--prevalence", "0.02"))):
        code, _, error = call(predict.main, out, strangers, "--out", tmp_path / name, "--device", "cpu", *more)
        assert code == 0, error
        tables.append(pd.read_csv(tmp_path / name))
    here, rare = tables
    assert (rare["prob_tumour"] < here["prob_tumour"]).all()
    ensemble = load_ensemble(out, "cpu")
    for slide_id, found in rare.set_index("slide_id")["prob_tumour"].items():
        features = torch.from_numpy(read_embeddings(strangers / f"{slide_id}.h5").features)
        answers = np.array([ensemble.ask(m, features).answer for m in (0, 1)])
        shares = np.array([c["shares"] for c in ensemble.calibrations])
        odds = answers[:, 1] / answers[:, 0] * shares[:, 0] / shares[:, 1] * 0.02 / 0.98
        assert found == pytest.approx((odds / (1 + odds)).mean())
    code, _, error = call(predict.main, out, strangers, "--out", tmp_path / "x.csv", "--prevalence", "2")
    assert code == 2 and "--prevalence is 2, expected a share above 0 and below 1" in error


def test_workers_of_dask_predict_the_same(trained, strangers, call, tmp_path, write_features):
    _, out = trained
    for path in strangers.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "damaged.h5").write_bytes(b"half a file")
    here, there, cpu = tmp_path / "here.csv", tmp_path / "there.csv", ("--device", "cpu")
    assert call(predict.main, out, tmp_path, "--out", here, *cpu)[0] == 1
    with dask_worker() as address:
        code, _, error = call(predict.main, out, tmp_path, "--out", there, *cpu, "--scheduler", address)
        assert code == 1 and "damaged" in error
        write_features(tmp_path, "other", np.zeros((20, 5)))  # of another encoder
        code, _, error = call(predict.main, out, tmp_path, "--out", there, *cpu, "--scheduler", address)
        assert code == 2 and "extract them with the same encoder" in error
    assert there.read_bytes() == here.read_bytes()
    assert (tmp_path / "there.failures.csv").read_bytes() == (tmp_path / "here.failures.csv").read_bytes()


def test_slides_of_the_training_get_their_out_of_fold_prediction(trained, call, tmp_path):
    table, out = trained
    code, _, error = call(predict.main, out, table.parent, "--out", tmp_path / "p.csv", "--device", "cpu")
    assert code == 0 and "16 of these slides are of patients that the run was trained on" in error
    got, wanted = (t.set_index("slide_id") for t in (pd.read_csv(tmp_path / "p.csv"), read_predictions(out)))
    wanted = wanted.loc[got.index]
    assert got["prob_tumour"].to_numpy() == pytest.approx(wanted["prob_tumour"].to_numpy(), abs=1e-9)
    assert got["prediction"].tolist() == wanted["prediction"].tolist()
    assert (got["models"] == 1).all() and got["in_training"].all()


def test_a_training_slide_is_known_by_its_patient_and_by_its_file(call, tmp_path, make_cohort, write_features):
    table = make_cohort(tmp_path / "f", slides=16)
    write_features(table.parent, "s03", np.random.default_rng(9).normal(size=(9, 8)), slide_fingerprint="f" * 64)
    frame = pd.read_csv(table)
    frame["split"] = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    frame.to_csv(table, index=False)
    assert call(train.main, *_arguments(table, tmp_path / "run"))[0] == 0
    new = tmp_path / "new"
    for name, fingerprint in (("copy", "f" * 64), ("sibling", ""), ("tested", ""), ("stranger", "")):
        write_features(new, name, np.random.default_rng(1).normal(size=(9, 8)), slide_fingerprint=fingerprint)
    (tmp_path / "new.csv").write_text("slide_id,patient_id\ncopy,x\nsibling,p00\ntested,p07\nstranger,y\n")
    arguments = [tmp_path / "run", new, "--out", tmp_path / "p.csv", "--device", "cpu"]
    code, _, error = call(predict.main, *arguments, "--slides", tmp_path / "new.csv")
    assert code == 1 and "copy: all models of the run were trained on this slide or its patient p01" in error
    assert "sibling: all models of the run were trained on this slide or its patient p00" in error
    got = pd.read_csv(tmp_path / "p.csv").set_index("slide_id")
    assert got["in_training"].to_dict() == {"stranger": False, "tested": True}


def test_unreadable_features_fail_alone(trained, call, tmp_path, write_features):
    _, out = trained
    folder = tmp_path / "new"
    folder.mkdir()
    write_features(folder, "good", np.ones((3, 8)))
    write_features(folder, "empty", np.ones((0, 8)))
    (folder / "bad.h5").write_bytes(b"nothing")
    code, _, error = call(predict.main, out, folder, "--out", tmp_path / "p.csv", "--device", "cpu")
    assert code == 1 and "2 slides failed" in error
    assert pd.read_csv(tmp_path / "p.csv")["slide_id"].tolist() == ["good"]
    failures = pd.read_csv(tmp_path / "p.failures.csv").set_index("slide_id")["reason"]
    assert "not a readable HDF5 file" in failures["bad"] and "no patches" in failures["empty"]


@pytest.mark.parametrize(
    ("changes", "dim", "message"),
    [
        ({"encoder": "uni"}, 8, "encoder 'uni' instead of 'resnet50'"),
        ({"weights_sha256": "00"}, 8, "weights_sha256 '00' instead of 'abab"),
        ({}, 9, "dim 9 instead of 8"),
    ],
)
def test_features_of_another_encoder_are_refused(trained, call, tmp_path, write_features, changes, dim, message):
    _, out = trained
    write_features(tmp_path, "x", np.ones((3, dim)), **changes)
    code, _, error = call(predict.main, out, tmp_path, "--out", tmp_path / "p.csv")
    assert code == 2 and message in error and not (tmp_path / "p.csv").exists()


def test_predicting_with_nothing(trained, call, tmp_path):
    table, out = trained
    code, _, error = call(predict.main, tmp_path, table.parent, "--out", tmp_path / "p.csv")
    assert code == 2 and "no run directory" in error
    code, _, error = call(predict.main, out, tmp_path, "--out", tmp_path / "p.csv")
    assert code == 2 and "no feature file (*.h5) in this folder" in error


def test_patches_of_another_scale_are_refused(trained, call, tmp_path, write_features):
    _, out = trained
    trained_mpp = read_provenance(out)["features"]["mpp"]
    write_features(tmp_path, "near", np.ones((3, 8)), mpp=trained_mpp * 1.05)
    write_features(tmp_path, "far", np.ones((3, 8)), mpp=trained_mpp * 2)
    code, _, error = call(predict.main, out, tmp_path, "--out", tmp_path / "p.csv", "--device", "cpu")
    assert code == 1 and f"the run was trained at {trained_mpp:.3g}" in error
    assert pd.read_csv(tmp_path / "p.csv")["slide_id"].tolist() == ["near"]


def test_predict_mil_replaces_nothing_unasked(trained, call, tmp_path, write_features):
    _, out = trained
    write_features(tmp_path, "x", np.ones((3, 8)))
    file = tmp_path / "p.csv"
    file.write_text("keep")
    code, _, error = call(predict.main, out, tmp_path, "--out", file, "--device", "cpu")
    assert code == 2 and "says something else" in error and file.read_text() == "keep"
    for more in (["--overwrite"], []):  # and once more: the same content is no conflict
        code, _, error = call(predict.main, out, tmp_path, "--out", file, "--device", "cpu", *more)
        assert code == 0 and "are of patients" not in error
    code, _, error = call(predict.main, out, tmp_path, "--out", out / "predictions.csv")
    assert code == 2 and "run directory" in error
