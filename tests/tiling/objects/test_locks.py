"""Of jobs that want one output in an object store, one holds its lock; a dead one's is taken over by one."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tiling.jobs.locks import Locked
from tiling.objects import locks
from tiling.objects.folder import ABSENT, Taken, folder_at
from tiling.objects.locks import object_lock

ELSEWHERE = {"host": "far", "boot": "b", "pids": "p", "pid": 1, "started": 1, "token": "t"}


@pytest.fixture
def folder(objects):
    return folder_at(objects.place)


def test_a_live_lock_is_held_by_one_and_let_go(folder):
    with object_lock(folder, "s"):
        with pytest.raises(Locked, match="is held by process") as held, object_lock(folder, "s"):
            pass
        assert held.value.beat == ""  # its owner is seen to run
    assert folder.files() == {}


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(folder):
    dead = {**locks.process(1), "started": 0, "token": "t"}
    folder.put("s.lock", json.dumps(dead).encode())
    with object_lock(folder, "s"):
        assert json.loads(folder.read("s.lock")[0])["token"] != "t"


def test_of_many_that_find_a_dead_lock_one_takes_it_over(folder, monkeypatch):
    folder.put("s.lock", json.dumps(ELSEWHERE).encode())
    with pytest.raises(Locked) as held, object_lock(folder, "s"):
        pass
    assert held.value.beat  # by which a caller sees whether it is alive
    monkeypatch.setattr(locks, "DEAD_AFTER_S", -1.0)
    done, begun = threading.Event(), threading.Barrier(6)

    def try_it(_):
        begun.wait()
        try:
            with object_lock(folder, "s"):
                done.wait(20)
                return 1
        except Locked:
            return 0

    with ThreadPoolExecutor(6) as pool:
        tries = [pool.submit(try_it, i) for i in range(6)]
        while sum(t.done() for t in tries) < 5:
            time.sleep(0.01)
        done.set()
        assert sum(t.result() for t in tries) == 1
    assert folder.files() == {}


def test_a_heartbeat_renews_the_lock_and_never_that_of_another(folder, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    with object_lock(folder, "s"):
        first = folder.find("s.lock").version
        while folder.find("s.lock").version == first:
            pass
        other = json.dumps(ELSEWHERE).encode()
        while True:
            try:
                folder.put("s.lock", other, folder.find("s.lock").version)
                break
            except Taken:  # the heart beat in between
                continue
        time.sleep(0.1)
        assert folder.read("s.lock")[0] == other
    assert folder.read("s.lock")[0] == other


def test_what_another_has_put_meanwhile_is_locked(folder):
    with pytest.raises(Locked, match="another job has put it"), object_lock(folder, "s"):
        folder.put("s", b"theirs")
        folder.put("s", b"ours", ABSENT)
    assert folder.read("s")[0] == b"theirs" and set(folder.files()) == {"s"}
