"""Slides over a Dask cluster: workers and schedulers that die, resources, memory; each slide is done once."""

import functools
import json
import os
import signal
import threading
import time
from dataclasses import dataclass

import dask
import distributed
import numpy as np
import pytest
from dask_processes import DaskProcesses, wait_for

from tiling.jobs.atomic import atomic_file, write_text
from tiling.jobs.errors import RequestError
from tiling.jobs.execution import Execution, map_cluster
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome
from tiling.jobs.slide_loop import run_slides
from tiling.jobs.terminal import exit_code
from tiling.jobs.workers import cores


@dataclass(frozen=True)
class Job:
    slide_id: str


def noted_work(job, out):
    """Holds the slide's lock for a while and notes who did it; the first to do slide 3 waits to be killed."""
    if (out / job.slide_id).exists():  # done, but its worker died before it told: Dask does it again
        return Outcome(job.slide_id, "skipped")
    with lock(out / job.slide_id), atomic_file(out / job.slide_id) as temporary:
        temporary.write_text(str(cores()))
        victim = out / "victim"
        if job.slide_id == "3" and not victim.exists():
            write_text(victim, str(os.getpid()))
            time.sleep(60)
        time.sleep(0.2)
        with (out / "notes").open("a") as file:
            file.write(f"{job.slide_id}\n")
    return Outcome(job.slide_id, "done")


def test_a_killed_dask_worker_costs_nothing_and_each_slide_is_done_once(tmp_path):
    jobs, results = [Job(str(n)) for n in range(12)], []
    work = functools.partial(noted_work, out=tmp_path)
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, processes=True, memory_limit=0
    ) as cluster:
        address = cluster.scheduler_address
        run = threading.Thread(
            target=lambda: results.append(run_slides(jobs, work, tmp_path, Execution(scheduler=address)))
        )
        run.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / "victim").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (tmp_path / "3.lock").exists()
        os.kill(int((tmp_path / "victim").read_text()), signal.SIGKILL)
        run.join(timeout=90)
    assert [exit_code(outcomes) for outcomes in results] == [0]
    assert json.loads((tmp_path / "summary.json").read_text())["counts"].keys() <= {"done", "skipped"}
    assert sorted((tmp_path / "notes").read_text().split(), key=int) == [str(n) for n in range(12)]
    assert {(tmp_path / str(n)).read_text() for n in range(12)} == {"1"}  # one core a task
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob(".*"))


def pid(job):
    return os.getpid()


def test_work_for_a_gpu_goes_to_workers_that_offer_one(tmp_path):
    jobs = [Job(str(n)) for n in range(24)]
    with DaskProcesses(tmp_path, workers=1) as cluster, distributed.Client(cluster.address) as client:
        client.wait_for_workers(1)
        with pytest.raises(RequestError, match="none of its workers offers the resource GPU"):
            list(map_cluster(pid, jobs, cluster.address, gpu=True))
        with_gpu = cluster.add_worker("--resources", "GPU=1")
        client.wait_for_workers(2)
        assert {found for _, found in map_cluster(pid, jobs, cluster.address, gpu=True)} == {with_gpu.pid}


def hungry_work(job):
    """Takes, or keeps, as many MiB as the slide's name says."""
    verb, mebibytes = job.slide_id.split()[:2]
    for _ in range(int(mebibytes) // 50):
        KEPT.append(np.ones(50 << 17))
        time.sleep(0.1)  # the worker's memory is looked at ten times a second
    if verb == "keeps":
        time.sleep(0.3)
    else:
        KEPT.clear()
    return Outcome(job.slide_id, "done")


KEPT: list[np.ndarray] = []


@pytest.fixture
def strict(monkeypatch):
    """A scheduler gives a job up when one worker died of it, not four."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")


def test_a_worker_without_memory_costs_one_slide_at_most(tmp_path, strict):
    """keeps: a library would, and Dask pauses a worker at 80 %. takes: beyond 95 % it is restarted."""
    jobs = [Job("takes 2000"), Job("keeps 450"), *(Job(f"takes 0 {n}") for n in range(6))]
    with DaskProcesses(tmp_path, workers=0) as cluster:
        cluster.add_worker("--memory-limit", "640MiB", nanny=True)
        outcomes = run_slides(jobs, hungry_work, tmp_path, Execution(scheduler=cluster.address))
    assert outcomes.counts == {"done": 7, "failed": 1}
    assert "more than the --memory-limit" in outcomes.failed[0].reason


def test_slides_that_are_too_large_beside_others_are_done_alone(tmp_path, strict):
    jobs = [Job(f"takes 350 {n}") for n in range(3)]
    with DaskProcesses(tmp_path, workers=0) as cluster:
        cluster.add_worker("--memory-limit", "640MiB", "--nthreads", 3, nanny=True)
        assert run_slides(jobs, hungry_work, tmp_path, Execution(scheduler=cluster.address)).counts == {"done": 3}


def test_a_lost_scheduler_ends_the_run(tmp_path):
    with DaskProcesses(tmp_path) as cluster, dask.config.set({"distributed.comm.timeouts.connect": "3s"}):
        results = []
        work = functools.partial(noted_work, out=tmp_path)
        jobs, execution = [Job(str(n)) for n in range(40)], Execution(scheduler=cluster.address)
        run = threading.Thread(target=lambda: results.append(run_slides(jobs, work, tmp_path, execution)))
        run.start()
        wait_for((tmp_path / "victim").exists)
        cluster.kill(cluster.scheduler)
        run.join()
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert "was lost; run again" in results[0].stopped and counts["failed"] == 1 and counts["not done"] > 0


def test_a_scheduler_that_is_lost_with_a_result_ends_the_run(tmp_path, monkeypatch):
    def unreachable(future, timeout=None):
        raise distributed.comm.CommClosedError("in <TCP>: Stream is closed")

    with DaskProcesses(tmp_path, workers=1) as cluster:
        monkeypatch.setattr(distributed.Future, "result", unreachable)
        execution = Execution(scheduler=cluster.address)
        outcomes = run_slides([Job("0")], functools.partial(noted_work, out=tmp_path), tmp_path, execution)
    assert "was lost; run again" in outcomes.stopped
