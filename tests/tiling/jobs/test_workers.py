import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiling.jobs.arrivals import Arrivals
from tiling.jobs.atomic import atomic_folder
from tiling.jobs.errors import RequestError
from tiling.jobs.locks import lock
from tiling.jobs.workers import OnOneCore, WorkerDied, alive, cores, map_threads, map_unordered


def cores_seen(seconds):
    """Cores at the start and at the end of a job."""
    first = cores()
    time.sleep(seconds)
    return first, cores()


def test_outside_a_pool_all_cores_may_be_used():
    assert cores() == len(os.sched_getaffinity(0))
    alive()  # says nothing to nobody


def test_fewer_jobs_than_cores_share_them():
    results = dict(map_unordered(cores_seen, [0.5, 0.6], 7))
    assert results[0.5][0] == 3 and results[0.6][0] == 3
    assert dict(map_unordered(cores_seen, [0.1], 5)) == {0.1: (5, 5)}


def test_the_last_job_gets_the_cores_of_the_idle():
    results = dict(map_unordered(cores_seen, [0.0, 0.01, 3.0], 3))
    first, last = results[3.0]
    assert first <= last == 3  # 1 at first, unless the other two ended before its process had started


def test_jobs_are_begun_as_they_come():
    """Each but the first comes when the result of the one before is known; two workers wait meanwhile."""
    coming: Arrivals[float] = Arrivals(3, [0.01])
    results = []
    for job, _ in map_unordered(cores_seen, coming, 2):
        results.append(job)
        if len(results) < 3:
            threading.Timer(0.1, coming.put, [0.01 * (len(results) + 1)]).start()
    assert results == [0.01, 0.02, 0.03] and not coming.left


def test_a_dask_task_has_one_core():
    assert OnOneCore(cores_seen)(0.0) == (1, 1) and cores() == len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(1) as pool:  # another thread of the same process is not in the task
        assert OnOneCore(lambda _: pool.submit(cores).result())(0) == cores()


def hang_or_live(job):
    """-1 hangs up; n lives for n seconds with signs of life, and without them if it is a text."""
    if job == -1:
        while True:
            time.sleep(1)
    end = time.monotonic() + float(job)
    while time.monotonic() < end:
        time.sleep(0.05)
        if not isinstance(job, str):
            alive()
    return job


def test_a_hung_up_worker_is_killed_and_one_that_lives_is_not():
    results = dict(map_unordered(hang_or_live, [-1, 5, 0], 2, stall_s=3))
    assert results[5] == 5 and results[0] == 0
    assert isinstance(results[-1], WorkerDied) and "nothing happened for 3 s" in str(results[-1])
    (result,) = dict(map_unordered(hang_or_live, ["5"], 1, stall_s=2)).values()
    assert isinstance(result, WorkerDied)


SUSPENDED = """
import sys
from tests_workers import hang_or_live
from tiling.jobs.workers import map_unordered
if __name__ == '__main__':
    for job, result in map_unordered(hang_or_live, ['4'], 1, stall_s=6):
        print(result, flush=True)
"""


def test_a_suspended_job_is_not_taken_for_hung_up(tmp_path):
    (tmp_path / "tests_workers.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(SUSPENDED)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    running = subprocess.Popen(
        [sys.executable, tmp_path / "run.py"], env=environment, stdout=-1, text=True, start_new_session=True
    )
    time.sleep(4)
    os.killpg(running.pid, signal.SIGSTOP)
    time.sleep(9)
    os.killpg(running.pid, signal.SIGCONT)
    assert running.communicate(timeout=30)[0] == "4\n"


def refuse(job):
    raise RequestError(f"{job} is wrong")


def test_what_work_raises_is_raised_to_the_caller():
    with pytest.raises(RequestError, match="5 is wrong"):
        list(map_unordered(refuse, [5], 1))


def end_or_do(job):
    if job == 0:  # ends this worker just after it has given its result
        threading.Timer(0.3, os._exit, (3,)).start()
    else:
        time.sleep(0.6)
    return job


def test_a_worker_that_dies_idle_costs_at_most_the_job_it_gets():
    results = dict(map_unordered(end_or_do, [0, 1, 2, 3], 2))
    assert [k for k, v in results.items() if v == k][:1] == [0] and len(results) == 4
    assert sum(isinstance(v, WorkerDied) for v in results.values()) <= 1


def write_with_threads(path):
    """A slide that several threads make, and that never ends."""
    with lock(path), atomic_folder(path) as folder, ThreadPoolExecutor(4) as pool:
        for i in range(1000):
            pool.submit(time.sleep, 0.2)
            (folder / str(i)).write_text("half")
        time.sleep(60)


SLOW = """
import sys
from pathlib import Path
from tests_workers import write_with_threads
from tiling.jobs.command import run_command
from tiling.jobs.workers import map_unordered
if __name__ == '__main__':
    run_command('try', lambda: list(map_unordered(write_with_threads, [Path(sys.argv[1]) / n for n in 'ab'], 2)))
"""


def test_sigterm_in_a_slide_with_threads_ends_it_and_leaves_nothing_under_its_name(tmp_path):
    (tmp_path / "tests_workers.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(SLOW)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    running = subprocess.Popen([sys.executable, tmp_path / "run.py", out], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".?.tmp-*/999"))) < 2:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)  # Slurm sends it to all processes of a step
    assert running.wait(timeout=40) == 130  # the threads alone have 50 s to do
    assert not {p.name for p in out.iterdir()} & {"a", "b"}  # what is half written has no final name


def clear_up_slowly(path):
    with lock(path):
        path.write_text("begun")
        try:
            time.sleep(60)
        finally:
            time.sleep(0.5)


def test_sigterm_to_a_whole_job_lets_workers_clear_up(tmp_path):
    """It reaches the server that workers are forked from, too; were that to end, they would be killed in the midst."""
    (tmp_path / "tests_workers.py").write_text(Path(__file__).read_text())
    (tmp_path / "run.py").write_text(SLOW.replace("write_with_threads", "clear_up_slowly"))
    (out := tmp_path / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    running = subprocess.Popen([sys.executable, tmp_path / "run.py", out], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not {p.name for p in out.iterdir()} >= {"a", "b", "a.lock", "b.lock"}:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(timeout=60) == 130
    assert {p.name for p in out.iterdir()} == {"a", "b"}


def test_threads_give_every_result_and_what_a_job_raises():
    assert sorted(map_threads(lambda n: n * n, range(20), 3)) == [n * n for n in range(20)]
    with pytest.raises(RequestError, match="no 3"):
        list(map_threads(refuse_three, range(20), 2))


def refuse_three(number):
    if number == 3:
        raise RequestError("no 3")
    return number


def test_threads_that_are_closed_end_at_their_next_sign_of_life():
    begun, ended = [], []

    def work(number):
        begun.append(number)
        if number == 0:
            return number
        try:
            while True:
                alive()
                time.sleep(0.01)
        finally:
            ended.append(number)

    results = map_threads(work, range(9), 2)
    assert next(results) == 0
    results.close()
    assert set(begun) <= {0, 1, 2} and sorted(ended) == sorted(set(begun) - {0})
    alive()  # another thread's run goes on
