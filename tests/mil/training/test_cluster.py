"""Training on a Dask cluster of real processes: the bytes of one machine, whatever is killed meanwhile."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from dask_processes import DaskProcesses, wait_for
from distributed import Client

from mil.run.checkpoint import fold_numbers
from mil.run.layout import is_complete
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from tiling.jobs.errors import RequestError

FAST = dict(learning_rate=0.01, batch_slides=4, embed_dim=16, attention_dim=8, bootstrap=200, device="cpu", folds=2)
LONG = FAST | dict(epochs=120, patience=120, parallel_models=1, inner_folds=3)  # six teams, each some seconds

IMPATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}  # Dask looks for a lost scheduler for so long


def train(table, out, **settings):
    return train_mil(table.parent, table, "diagnosis", out, TrainConfig(**settings))


def content(out: Path) -> dict[str, bytes]:
    """All of a run but the events of TensorBoard, which hold times, and the paths of the request."""
    files = (path for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def table(tmp_path_factory, make_cohort):
    return make_cohort(tmp_path_factory.mktemp("cohort"), slides=16)


@pytest.fixture(scope="module")
def long(tmp_path_factory, table):
    """The run of one machine that long ones on a cluster must equal."""
    out = tmp_path_factory.mktemp("long") / "run"
    train(table, out, **LONG)
    return content(out)


def test_workers_give_the_bytes_of_one_machine(tmp_path, table):
    with DaskProcesses(tmp_path) as cluster:
        for number, of in enumerate((dict(repeats=2, parallel_models=4), dict(head="auto", inner_folds=2))):
            here, there, settings = tmp_path / f"here{number}", tmp_path / f"there{number}", FAST | dict(epochs=4) | of
            train(table, here, **settings)
            train(table, there, **settings, scheduler=cluster.address)
            assert len(content(here)) > 25 and content(there) == content(here)


def test_a_killed_worker_costs_nothing(tmp_path, table, long):
    faults = []

    def run(address):
        try:
            train(table, tmp_path / "run", **LONG, scheduler=address)
        except BaseException as fault:
            faults.append(fault)

    with DaskProcesses(tmp_path) as cluster, Client(cluster.address) as client:
        training = threading.Thread(target=run, args=(cluster.address,))
        training.start()
        wait_for(lambda: sum(map(bool, client.processing().values())) == 2)  # both have something to do
        cluster.kill(cluster.workers[0])
        training.join()
    assert not faults
    assert content(tmp_path / "run") == long


@pytest.mark.long
def test_a_lost_scheduler_ends_the_run_which_goes_on_with_another(tmp_path, table, long):
    out = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in LONG.items()]
    start = [sys.executable, "-c", "from mil.cli.train import main; main()", str(table.parent), "--labels", str(table)]
    with DaskProcesses(tmp_path, workers=1) as cluster:
        command = [*start, "--target", "diagnosis", "--out", str(out), *flags, "--scheduler", cluster.address]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **IMPATIENT})
        wait_for(lambda: fold_numbers(out) or running.poll() is not None)
        cluster.kill(cluster.scheduler)
        told = running.communicate()[1]
    assert running.returncode == 2 and "was lost; run again; folds that are finished are kept" in told
    (done,) = fold_numbers(out)
    kept = (out / f"fold-{done}/checkpoint.safetensors").stat().st_mtime_ns
    assert not is_complete(out)
    with DaskProcesses(tmp_path, workers=1) as cluster:
        train(table, out, **LONG, scheduler=cluster.address)
    assert (out / f"fold-{done}/checkpoint.safetensors").stat().st_mtime_ns == kept
    assert content(out) == long


def test_a_worker_that_sees_other_features_is_refused(tmp_path, make_cohort, write_features, monkeypatch):
    table = make_cohort(tmp_path / "f", slides=16)

    def changed_meanwhile(*arguments, **named):
        write_features(tmp_path / "f", "s00", np.zeros((20, 8)))
        return plan_training(*arguments, **named)

    monkeypatch.setattr("mil.training.command.plan_training", changed_meanwhile)
    with DaskProcesses(tmp_path, workers=1) as cluster, pytest.raises(RequestError, match="reads other features"):
        train(table, tmp_path / "run", **FAST, scheduler=cluster.address)
