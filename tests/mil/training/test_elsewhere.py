"""Features in an object store are copied once for training; what cannot lie there is refused by name."""

import pytest

from mil import train
from mil.cli.predict import main as predict_main
from mil.cli.train import main as train_main
from tiling.jobs.errors import RequestError
from tiling.objects.folder import folder_at

SETTINGS = {"head": "mean", "folds": 2, "epochs": 1, "bootstrap": 100, "inner_folds": 0}


def test_a_run_on_features_elsewhere_is_that_on_a_folder(objects, make_cohort, tmp_path):
    table = make_cohort(tmp_path / "features", slides=16)
    folder, stage = folder_at(f"{objects.place}/features"), tmp_path / "stage"
    for file in (tmp_path / "features").glob("*.h5"):
        folder.put(file.name, file.read_bytes())
    folder.put("stranger.h5", b"of no slide of the table")
    with pytest.raises(RequestError, match="features are read again and again; give --stage DIR"):
        train(folder.url, table, "diagnosis", tmp_path / "run", **SETTINGS)
    here = train(tmp_path / "features", table, "diagnosis", tmp_path / "here", **SETTINGS)
    there = train(folder.url, table, "diagnosis", tmp_path / "there", stage=str(stage), **SETTINGS)
    assert there.predictions.equals(here.predictions) and objects.count("GET", ".h5") == 16
    train(folder.url, table, "diagnosis", tmp_path / "there", stage=str(stage), **SETTINGS)
    assert objects.count("GET", ".h5") == 16 and objects.count("GET", "stranger.h5") == 0


def test_what_cannot_lie_elsewhere_is_refused_and_no_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = ["--labels", "t.csv", "--target", "x"]
    for main, arguments, named in (
        (train_main, ["features", *told, "--out", "s3://bucket/run"], "--out"),
        (train_main, ["features", *told, "--out", "run", "--patches", "s3://bucket/patches"], "--patches"),
        (predict_main, ["run", "s3://bucket/features", "--out", "p.csv"], "FEATURES"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and f"{named}: is an address (s3://…), and has to be local" in said
    with pytest.raises(RequestError, match="runs are written in local folders alone"):
        train("features", "t.csv", "x", "s3://bucket/run")
    assert not list(tmp_path.iterdir())
