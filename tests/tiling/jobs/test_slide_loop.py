import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import distributed
import pytest

from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import Callback
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome
from tiling.jobs.slide_loop import run_slides
from tiling.jobs.terminal import Terminal, exit_code
from tiling.jobs.workers import WorkerDied, map_unordered
from tiling.manifest import SlideRow, largest_first


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
    outcomes = run_slides(JOBS, work, tmp_path, Execution(workers), Terminal("try"))
    assert exit_code(outcomes) == 1 and outcomes.counts == {"done": 3, "failed": 2, "empty": 1}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"] == {"done": 3, "failed": 2, "empty": 1}
    assert (tmp_path / "failures.csv").read_text().splitlines() == [
        "slide_id,reason",
        'broken,"broken.svs: is damaged, with a comma"',
        "bug,ZeroDivisionError: division by zero",
    ]
    printed = capsys.readouterr()
    assert "3 done, 1 empty, 2 failed" in printed.out and "failures.csv" in printed.err
    assert exit_code(run_slides([Job("a")], work, tmp_path, Execution(workers))) == 0
    assert not (tmp_path / "failures.csv").exists()


def test_a_crash_in_native_code_costs_one_slide(tmp_path):
    jobs = [Job(n) for n in ("a", "crash", "b", "exit", "c", "d")]
    assert run_slides(jobs, work, tmp_path, Execution(2)).counts == {"done": 4, "failed": 2}
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert [n for n in slides if slides[n]["status"] == "done"] == ["a", "b", "c", "d"]
    assert "SIGSEGV" in slides["crash"]["reason"] and "exit code 7" in slides["exit"]["reason"]


def test_parts_keep_their_own_summary(tmp_path):
    run_slides([Job("broken")], work, tmp_path, Execution(part="1/2"))
    run_slides([Job("a")], work, tmp_path, Execution(part="2/2"))
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


RUN = """
import sys
from pathlib import Path
from tests_batch import Job, sleep
from tiling.jobs.command import run_command
from tiling.jobs.execution import Execution
from tiling.jobs.slide_loop import run_slides
if __name__ == "__main__":
    run_command("try", lambda: len(run_slides([Job("a"), Job("b")], sleep, Path(sys.argv[1]), Execution(2))))
"""


SWALLOWED = """
import os, signal, time
from tiling.jobs.command import run_command

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

def body():
    Dropped()
    time.sleep(100)
    return 0

run_command("try", body)
"""


def test_a_stop_that_python_swallows_is_not_lost():
    """What is raised in a destructor goes no further."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130 and "stopped; what is finished stays" in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_parent(tmp_path, sent, code):
    (tmp_path / "tests_batch.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(RUN)
    pids = tmp_path / "pids"
    tests, root = Path(__file__).parents[2:4]
    environment = {**os.environ, "PIDS": str(pids), "PYTHONPATH": f"{tmp_path}:{root}:{tests / 'helpers'}"}
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


def test_the_largest_slide_is_done_first(tmp_path):
    (tmp_path / "small").write_bytes(bytes(10))
    (tmp_path / "large").write_bytes(bytes(3000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.dcm").write_bytes(bytes(1000))
    (tmp_path / "folder/b.dcm").write_bytes(bytes(1000))
    rows = largest_first([SlideRow(name, tmp_path / name) for name in ("small", "folder", "gone", "large")])
    outcomes = run_slides(rows, work, tmp_path / "out", Execution(1))
    assert [o.slide_id for o in outcomes] == ["large", "folder", "small", "gone"]


def test_what_is_shown_where_there_is_no_terminal(tmp_path, capsys):
    jobs, seen = [Job(n) for n in ("a", "empty", "broken")], []
    run_slides(jobs, work, tmp_path, listener=Terminal("try"))
    printed = capsys.readouterr()
    assert printed.out.startswith("try: 1 done, 1 empty, 1 failed, 3 patches in 0 s (")
    assert printed.out.endswith(f"/s) → {tmp_path}\n")
    assert printed.err.splitlines() == [
        "try [1/3] a: done, 3 patches",
        "try [2/3] empty: empty",
        "try [3/3] broken: failed, broken.svs: is damaged, with a comma",
        f"try: why slides failed is in {tmp_path / 'failures.csv'}",
    ]
    outcomes = run_slides(jobs, work, tmp_path, listener=Callback(lambda *told: seen.append(told)))
    assert capsys.readouterr() == ("", "")
    assert seen == [(outcome, number, 3) for number, outcome in enumerate(outcomes, 1)]


def test_outcomes_as_a_table(tmp_path):
    outcomes = run_slides(JOBS, work, tmp_path)
    table = outcomes.table()
    assert list(table.columns) == ["slide_id", "status", "reason", "patches"]
    assert list(table.slide_id) == ["a", "b", "broken", "bug", "c", "empty"] and table.patches.sum() == 12
    assert [o.slide_id for o in outcomes.failed] == ["broken", "bug"] and not outcomes.stopped
    assert outcomes.patches == 9 and outcomes.failures == tmp_path / "failures.csv"


def full(job):
    if job.slide_id == "b":
        raise OSError(28, "No space left on device")
    return work(job)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_the_run_once(tmp_path, workers, capsys):
    jobs = [Job(n) for n in "abcde"]
    outcomes = run_slides(jobs, full, tmp_path, Execution(workers), Terminal("try"))
    assert exit_code(outcomes) == 1 and "make room" in outcomes.stopped
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert [slides[n]["status"] for n in "abcde"] == ["done", "failed", "not done", "not done", "not done"]
    assert slides["b"]["reason"].startswith(f"{tmp_path.name} cannot be written: ")
    assert "make room" in slides["b"]["reason"]
    assert "stopped" in capsys.readouterr().err


def killed_with_its_lock(job, out):
    with lock(out / job.slide_id), atomic_file(out / job.slide_id) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_of_a_worker_that_was_killed(tmp_path):
    job = functools.partial(killed_with_its_lock, out=tmp_path)
    assert run_slides([Job("a")], job, tmp_path, Execution(1)).counts == {"failed": 1}
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
    assert exit_code(run_slides([Job("a"), Job("b")], job, tmp_path, listener=Terminal("try"))) == 0
    slides = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert {n: s["status"] for n, s in slides.items()} == {"a": "done", "b": "done"}
    assert "try: 1 slides are locked by jobs on other machines; waiting up to 122 s" in capsys.readouterr().err


def test_the_lock_of_a_live_job_on_another_host_is_seen_to_live(tmp_path, monkeypatch):
    waits, sleep = [], time.sleep
    monkeypatch.setattr("tiling.jobs.slide_loop.RETRY_S", 1.0)
    monkeypatch.setattr("tiling.jobs.slide_loop.time.sleep", lambda seconds: (waits.append(seconds), sleep(seconds)))
    file = _foreign_lock(tmp_path, 20)
    beat = threading.Timer(0.5, os.utime, (file,))
    beat.start()
    with pytest.warns(UserWarning, match="1 slides are locked by jobs on other machines; waiting up to"):
        outcomes = run_slides([Job("a")], functools.partial(locked_work, out=tmp_path), tmp_path)
    assert exit_code(outcomes) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["counts"] == {"locked": 1}
    assert 1 <= waits.count(1.0) < 5  # of 122


def test_a_live_lock_of_this_host_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tiling.jobs.slide_loop.RETRY_S", math.nan)  # sleeping so long is an error
    with lock(tmp_path / "a"):
        run_slides([Job("a")], functools.partial(locked_work, out=tmp_path), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["counts"] == {"locked": 1}


def test_over_dask(tmp_path):
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=False
    ) as cluster:
        outcomes = run_slides(JOBS, work, tmp_path, Execution(scheduler=cluster.scheduler_address))
    assert exit_code(outcomes) == 1
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert counts == {"done": 3, "failed": 2, "empty": 1}
