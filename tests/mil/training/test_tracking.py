"""Tracking by others: what is sent, that nothing is imported unasked, and what is said when it cannot be had."""

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mil.training.tracking
from mil.run.tables import by_member, read_history, read_metrics
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError

FAST = dict(folds=2, epochs=3, embed_dim=8, attention_dim=4, bootstrap=100, device="cpu")


class _Recorded:
    """Stands for a run of Weights & Biases and keeps what it is given."""

    def __init__(self, **how):
        self.how, self.rows, self.summary, self.steps, self.code = how, [], {}, {}, None

    def define_metric(self, name, step_metric):
        self.steps[name] = step_metric

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def recorded(monkeypatch):
    runs = []
    errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    module = SimpleNamespace(init=lambda **how: runs.append(_Recorded(**how)) or runs[-1], errors=errors)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def _train(table, out, **settings):
    config = TrainConfig(**{**FAST, **settings})
    return train_mil(table.parent, table, "diagnosis", out, config)


def test_losses_and_metrics_are_sent(recorded, tmp_path, make_cohort):
    out = tmp_path / "my-run"
    _train(make_cohort(tmp_path / "f", slides=16), out, track="wandb")
    [sent] = recorded
    for number in (0, 1):
        for member, history in enumerate(by_member(read_history(out, number))):
            name = f"fold-{number}-member-{member}" if member else f"fold-{number}"
            losses = [row[f"{name}/val_loss"] for row in sent.rows if f"{name}/val_loss" in row]
            assert losses == pytest.approx(history["val_loss"].tolist())
            assert sent.steps[f"{name}/*"] == f"{name}/epoch"
        assert member > 0
    assert sent.summary["slide/auroc/low"] == read_metrics(out)["slide"]["auroc"]["low"]
    assert (sent.how["name"], sent.how["dir"], sent.code) == ("my-run", str(out), 0)
    assert sent.how["config"]["epochs"] == 3 and str(tmp_path) not in str(sent.how["config"])


def test_tracking_changes_no_byte(recorded, tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=16)
    for name in ("wandb", ""):
        _train(table, tmp_path / f"run{name}", track=name)
    for name in ("provenance.json", "metrics.json", "predictions.csv", "report.html"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "runwandb" / name).read_bytes()
    assert (
        _train(table, tmp_path / "run", track="wandb").was_complete and len(recorded) == 1
    )  # complete: nothing to send


def test_a_run_that_goes_on_sends_what_was_there_already(recorded, tmp_path, make_cohort):
    table, out = make_cohort(tmp_path / "f", slides=16), tmp_path / "run"
    for _ in range(2):
        _train(table, out, track="wandb", parallel_models=1)
        (out / "metrics.json").unlink()
        shutil.rmtree(out / "fold-1")
    first, second = (sorted(map(repr, sent.rows)) for sent in recorded)
    assert first == second


def test_a_run_that_fails_is_sent_as_failed(recorded, tmp_path, make_cohort, monkeypatch):
    monkeypatch.setattr("mil.training.command.evaluate_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _train(make_cohort(tmp_path / "f", slides=16), tmp_path / "run", track="wandb")
    assert recorded[0].code == 1 and not recorded[0].summary


def test_a_missing_package_is_said_before_training(tmp_path, make_cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    table = make_cohort(tmp_path / "f", slides=16)
    with pytest.raises(RequestError, match=r"pip install 'slidemil\[wandb\]'"):
        _train(table, tmp_path / "run", track="wandb")
    assert not list((tmp_path / "run").glob("fold-*"))
    assert not _train(table, tmp_path / "run").was_complete


def test_the_package_is_not_imported_unasked(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # now an import of it fails
    importlib.reload(mil.training.tracking)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="track is 'mlflow', expected wandb"):
        TrainConfig(track="mlflow")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_offline_needs_no_network(tmp_path, make_cohort, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert not _train(make_cohort(tmp_path / "f", slides=16), tmp_path / "run", track="wandb").was_complete
    [kept] = Path(tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000
