import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiling.jobs.atomic import atomic_file, write_text
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import lock
from tiling.jobs.slide_loop import Outcome, run_batch
from tiling.jobs.workers import WorkerDied, cores, map_unordered


@dataclass(frozen=True)
class Job:
    slide_id: str


def work(job):
    if job.slide_id == "broken":
        raise SlideError("broken.svs: is damaged, with a comma")
    if job.slide_id == "bug":
        raise ZeroDivisionError("division by zero")
    if job.slide_id == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.slide_id == "exit":
        os._exit(7)
    return Outcome(job.slide_id, "empty" if job.slide_id == "empty" else "done", patches=3)


JOBS = [Job(n) for n in ("a", "broken", "b", "bug", "empty", "c")]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_slide_never_ends_the_run(tmp_path, workers, capsys):
    assert run_batch(JOBS, work, out=tmp_path, verb="try", workers=workers) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"] == {"done": 3, "failed": 2, "empty": 1}
    assert (tmp_path / "failures.csv").read_text().splitlines() == [
        "slide_id,reason",
        'broken,"broken.svs: is damaged, with a comma"',
        "bug,ZeroDivisionError: division by zero",
    ]
    printed = capsys.readouterr()
    assert "3 done, 1 empty, 2 failed" in printed.out and "failures.csv" in printed.err
    assert run_batch([Job("a")], work, out=tmp_path, verb="try", workers=workers) == 0
    assert not (tmp_path / "failures.csv").exists()


def test_a_crash_in_native_code_costs_one_slide(tmp_path):
    jobs = [Job(n) for n in ("a", "crash", "b", "exit", "c", "d")]
    assert run_batch(jobs, work, out=tmp_path, verb="try", workers=2) == 1
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert [n for n in slides if slides[n]["status"] == "done"] == ["a", "b", "c", "d"]
    assert "SIGSEGV" in slides["crash"]["reason"] and "exit code 7" in slides["exit"]["reason"]


def test_parts_keep_their_own_summary(tmp_path):
    run_batch([Job("broken")], work, out=tmp_path, verb="try", part="1/2")
    run_batch([Job("a")], work, out=tmp_path, verb="try", part="2/2")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"summary-1-of-2.json", "failures-1-of-2.csv", "summary-2-of-2.json"}


def _double(number):
    return os.getpid() if number < 0 else number * 2


def test_results_belong_to_their_jobs():
    assert sorted(map_unordered(_double, range(20), 2)) == [(n, 2 * n) for n in range(20)]
    assert list(map_unordered(_double, [], 2)) == []


def test_worker_died_is_an_answer(tmp_path):
    ((_, result),) = map_unordered(work, [Job("crash")], 1)
    assert isinstance(result, WorkerDied)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def sleep(job):
    with open(os.environ["PIDS"], "a") as f:
        f.write(f"{os.getpid()}\n")
    time.sleep(60)


RUN = "import sys\nfrom pathlib import Path\nfrom tests_batch import Job, sleep\n\
from tiling.jobs.slide_loop import run_batch\n\
from tiling.jobs.command import run_command\n\
if __name__ == '__main__':\n\
    run_command('try', lambda: run_batch([Job('a'), Job('b')], sleep, out=Path(sys.argv[1]), verb='try', workers=2))\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_parent(tmp_path, sent, code):
    (tmp_path / "tests_batch.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(RUN)
    pids = tmp_path / "pids"
    environment = {**os.environ, "PIDS": str(pids), "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", tmp_path / "out"],
        env=environment,
        stderr=-1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of the background ignores it
    )
    deadline = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(sent)
    assert parent.wait(timeout=10) == code
    time.sleep(0.5)
    assert not [pid for pid in pids.read_text().split() if _alive(pid)]


@dataclass(frozen=True)
class Sized:
    slide_id: str
    path: Path


def test_the_largest_slide_is_done_first(tmp_path, capsys):
    jobs = [Sized(name, tmp_path / name) for name in ("small", "folder", "gone", "large")]
    (tmp_path / "small").write_bytes(bytes(10))
    (tmp_path / "large").write_bytes(bytes(3000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.dcm").write_bytes(bytes(1000))
    (tmp_path / "folder/b.dcm").write_bytes(bytes(1000))
    assert run_batch(jobs, work, out=tmp_path / "out", verb="try", workers=1) == 0
    lines = [line.split()[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["large:", "folder:", "small:", "gone:"]


def full(job):
    if job.slide_id == "b":
        raise OSError(28, "No space left on device")
    return work(job)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_the_run_once(tmp_path, workers, capsys):
    jobs = [Job(n) for n in "abcde"]
    assert run_batch(jobs, full, out=tmp_path, verb="try", workers=workers) == 1
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert [slides[n]["status"] for n in "abcde"] == ["done", "failed", "not done", "not done", "not done"]
    assert str(tmp_path) in slides["b"]["reason"] and "make room" in slides["b"]["reason"]
    assert "stopped" in capsys.readouterr().err


def killed_with_its_lock(job, out):
    with lock(out / job.slide_id), atomic_file(out / job.slide_id) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_of_a_worker_that_was_killed(tmp_path):
    job = functools.partial(killed_with_its_lock, out=tmp_path)
    assert run_batch([Job("a")], job, out=tmp_path, verb="try", workers=1) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"summary.json", "failures.csv"}


def locked_work(job, out):
    with lock(out / job.slide_id):
        return Outcome(job.slide_id, "done")


def _foreign_lock(out, age_s):
    file = out / "a.lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(file, (0, time.time() - age_s))
    return file


def test_the_lock_of_a_job_killed_on_another_host_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tiling.jobs.slide_loop.RETRY_S", 1.0)
    _foreign_lock(tmp_path, 117)
    job = functools.partial(locked_work, out=tmp_path)
    assert run_batch([Job("a"), Job("b")], job, out=tmp_path, verb="try") == 0
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert {n: s["status"] for n, s in slides.items()} == {"a": "done", "b": "done"}
    assert "waiting" in capsys.readouterr().err


def test_the_lock_of_a_live_job_on_another_host_is_seen_to_live(tmp_path, monkeypatch):
    monkeypatch.setattr("tiling.jobs.slide_loop.RETRY_S", 1.0)
    file = _foreign_lock(tmp_path, 20)
    beat = threading.Timer(0.5, os.utime, (file,))
    beat.start()
    begun = time.monotonic()
    assert run_batch([Job("a")], functools.partial(locked_work, out=tmp_path), out=tmp_path, verb="try") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["counts"] == {"locked": 1}
    assert time.monotonic() - begun < 10


def test_a_live_lock_of_this_host_is_not_waited_for(tmp_path):
    begun = time.monotonic()
    with lock(tmp_path / "a"):
        run_batch([Job("a")], functools.partial(locked_work, out=tmp_path), out=tmp_path, verb="try")
    assert json.loads((tmp_path / "summary.json").read_text())["counts"] == {"locked": 1}
    assert time.monotonic() - begun < 5


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
    distributed = pytest.importorskip("distributed")
    jobs, results = [Job(str(n)) for n in range(12)], []
    work = functools.partial(noted_work, out=tmp_path)
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, processes=True, memory_limit=0
    ) as cluster:
        address = cluster.scheduler_address
        run = threading.Thread(
            target=lambda: results.append(run_batch(jobs, work, out=tmp_path, verb="try", scheduler=address))
        )
        run.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / "victim").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (tmp_path / "3.lock").exists()
        os.kill(int((tmp_path / "victim").read_text()), signal.SIGKILL)
        run.join(timeout=90)
    assert results == [0]
    assert json.loads((tmp_path / "summary.json").read_text())["counts"].keys() <= {"done", "skipped"}
    assert sorted((tmp_path / "notes").read_text().split(), key=int) == [str(n) for n in range(12)]
    assert {(tmp_path / str(n)).read_text() for n in range(12)} == {"1"}  # one core a task
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob(".*"))


def test_over_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=False
    ) as cluster:
        code = run_batch(JOBS, work, out=tmp_path, verb="try", scheduler=cluster.scheduler_address)
    assert code == 1
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert counts == {"done": 3, "failed": 2, "empty": 1}
