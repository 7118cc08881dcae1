import json
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tiling.jobs.locks import Locked, _set_aside, begin_run, lock, process


def test_a_live_lock_is_respected_and_freed(tmp_path):
    path = tmp_path / "x"
    with lock(path):
        with pytest.raises(Locked, match=str(os.getpid())), lock(path):
            pass
        assert (tmp_path / "x.lock").exists()
    assert list(tmp_path.iterdir()) == []


HOLD = "import sys, time; from pathlib import Path; from tiling.jobs.atomic import atomic_file; \
from tiling.jobs.locks import lock\n\
with lock(Path(sys.argv[1])), atomic_file(Path(sys.argv[1])) as t:\n\
    t.write_text('half'); print('held', flush=True); time.sleep(60)"


def test_the_lock_of_a_killed_process_is_taken_over_and_its_rest_removed(tmp_path):
    path = tmp_path / "x"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Locked), lock(path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(list(tmp_path.iterdir())) == 2  # the lock and the half-written file
    with lock(path):
        assert [p.name for p in tmp_path.iterdir()] == ["x.lock"]


def test_a_lock_of_another_host_dies_with_its_heartbeat(tmp_path):
    file = tmp_path / "x.lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(Locked), lock(tmp_path / "x"):
        pass
    os.utime(file, (0, time.time() - 600))
    with lock(tmp_path / "x"):
        assert "elsewhere" not in file.read_text()


def test_a_lock_whose_pid_was_given_to_another_process_dies_with_its_heartbeat(tmp_path):
    file = tmp_path / "x.lock"
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": 1}))
    with pytest.raises(Locked), lock(tmp_path / "x"):
        pass
    os.utime(file, (0, time.time() - 600))
    with lock(tmp_path / "x"):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_fresh_lock_is_given_back_by_who_came_for_the_dead_one(tmp_path):
    file = tmp_path / "x.lock"
    file.write_text("fresh")
    _set_aside(file, "dead")
    assert [p.name for p in tmp_path.iterdir()] == ["x.lock"] and file.read_text() == "fresh"
    _set_aside(file, "fresh")
    assert list(tmp_path.iterdir()) == []


def test_a_recycled_pid_does_not_keep_a_lock(tmp_path):
    file = tmp_path / "x.lock"
    owner = process(os.getpid())
    file.write_text(json.dumps(owner))
    with pytest.raises(Locked) as held, lock(tmp_path / "x"):
        pass
    assert held.value.beat == ""  # seen to run, no need to wait for its heartbeat
    file.write_text(json.dumps({**owner, "started": owner["started"] - 1}))
    with lock(tmp_path / "x"):
        pass


def test_a_container_of_the_same_name_is_another_machine(tmp_path):
    owner = {**process(os.getpid()), "pid": 4_000_000}  # a pid that this process cannot see
    for other in ({"pids": "pid:[1]"}, {"boot": "other"}, {"host": "other"}):
        (tmp_path / "x.lock").write_text(json.dumps({**owner, **other}))
        with pytest.raises(Locked) as held, lock(tmp_path / "x"):
            pass
        assert held.value.beat
    (tmp_path / "x.lock").write_text(json.dumps(owner))
    with lock(tmp_path / "x"):
        pass


@pytest.mark.parametrize("skew_s", [-1000, 1000])
def test_a_wrong_clock_of_this_host_kills_no_lock(tmp_path, monkeypatch, skew_s):
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + skew_s)
    file = tmp_path / "x.lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(Locked), lock(tmp_path / "x"):
        pass
    os.utime(file, (0, now() - 130))
    with lock(tmp_path / "x"):
        pass


def _try_lock(path, queue, all_have_tried):
    try:
        with lock(path):
            queue.put("held")
            all_have_tried.wait(60)
    except Locked:
        queue.put("locked")


def test_of_many_processes_one_gets_the_lock(tmp_path):
    queue, all_have_tried = mp.Queue(), mp.Event()
    processes = [mp.Process(target=_try_lock, args=(tmp_path / "x", queue, all_have_tried)) for _ in range(8)]
    for p in processes:
        p.start()
    outcomes = [queue.get(timeout=60) for _ in processes]
    all_have_tried.set()
    for p in processes:
        p.join()
    assert outcomes.count("held") == 1


def test_what_a_job_left_that_was_killed_while_it_took_the_lock_is_removed(tmp_path):
    (tmp_path / ".a.h5.lock.new-1-00").write_text("{}")
    with lock(tmp_path / "a.h5"):
        assert [p.name for p in tmp_path.iterdir()] == ["a.h5.lock"]
    assert not list(tmp_path.iterdir())


def test_a_lock_is_got_though_its_owner_before_removed_the_file_it_is_made_from(tmp_path, monkeypatch):
    link, removed = os.link, []

    def remove_once(source, target):
        if not removed:
            removed.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", remove_once)
    with lock(tmp_path / "a.h5"):
        assert removed and (tmp_path / "a.h5.lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_listed_once_in_a_run_and_where_a_lock_is_taken_over(tmp_path, monkeypatch):
    """A listing for each slide would cost the square of their number."""
    listed = []
    names = os.listdir

    def counted(folder):
        listed.append(folder)
        return names(folder)

    monkeypatch.setattr(os, "listdir", counted)
    for number in range(20):
        with lock(tmp_path / f"s{number}"):
            pass
    assert listed == [tmp_path]
    left = tmp_path / ".s3.tmp-1-ab"
    left.touch()
    dead = {**process(os.getpid()), "started": 0}
    (tmp_path / "s3.lock").write_text(json.dumps(dead))  # killed in this very run
    with lock(tmp_path / "s3"):
        assert not left.exists() and len(listed) == 2
    left.touch()
    begin_run()
    with lock(tmp_path / "s3"):
        assert not left.exists() and len(listed) == 3
