import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiling.batch import Outcome, run_batch
from tiling.errors import SlideError
from tiling.workers import WorkerDied, map_unordered


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


RUN = "import sys\nfrom pathlib import Path\nfrom tests_batch import Job, sleep\nfrom tiling.batch import run_batch\n\
from tiling.command import run_command\n\
if __name__ == '__main__':\n\
    run_command('try', lambda: run_batch([Job('a'), Job('b')], sleep, out=Path(sys.argv[1]), verb='try', workers=2))\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_parent(tmp_path, sent, code):
    (tmp_path / "tests_batch.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(RUN)
    pids = tmp_path / "pids"
    environment = {**os.environ, "PIDS": str(pids), "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path / "out"], env=environment, stderr=-1)
    deadline = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(sent)
    assert parent.wait(timeout=10) == code
    time.sleep(0.5)
    assert not [pid for pid in pids.read_text().split() if _alive(pid)]


def test_over_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=False
    ) as cluster:
        code = run_batch(JOBS, work, out=tmp_path, verb="try", scheduler=cluster.scheduler_address)
    assert code == 1
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert counts == {"done": 3, "failed": 2, "empty": 1}
