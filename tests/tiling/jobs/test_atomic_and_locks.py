import json
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tiling.jobs.atomic import atomic_file, atomic_folder, write_json
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import Locked, _process, _set_aside, lock
from tiling.jobs.provenance import check_format, differences, require_same
from tiling.slides.files import slide_fingerprint


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.zarr"
    for text in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / f"{text}.txt").write_text(text)
    assert [p.name for p in path.iterdir()] == ["new.txt"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["new.txt"] and list(tmp_path.iterdir()) == [path]


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
    owner = _process(os.getpid())
    file.write_text(json.dumps(owner))
    with pytest.raises(Locked) as held, lock(tmp_path / "x"):
        pass
    assert held.value.beat == ""  # seen to run, no need to wait for its heartbeat
    file.write_text(json.dumps({**owner, "started": owner["started"] - 1}))
    with lock(tmp_path / "x"):
        pass


def test_a_container_of_the_same_name_is_another_machine(tmp_path):
    owner = {**_process(os.getpid()), "pid": 4_000_000}  # a pid that this process cannot see
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


def test_a_folder_is_replaced_at_one_stroke(tmp_path):
    path = tmp_path / "x.zarr"
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.append(path.exists())

    for _ in range(2):
        with atomic_folder(path) as folder:
            (folder / "a").write_text("")
    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(100):
        with atomic_folder(path) as folder:
            (folder / "a").write_text("")
    stop.set()
    looking.join()
    assert len(seen) > 100 and all(seen)


def _try_lock(path, queue):
    try:
        with lock(path):
            queue.put("held")
            time.sleep(1)
    except Locked:
        queue.put("locked")


def test_of_many_processes_one_gets_the_lock(tmp_path):
    queue = mp.Queue()
    processes = [mp.Process(target=_try_lock, args=(tmp_path / "x", queue)) for _ in range(8)]
    for p in processes:
        p.start()
    outcomes = [queue.get(timeout=60) for _ in processes]
    for p in processes:
        p.join()
    assert outcomes.count("held") == 1


def test_unknown_formats_are_refused_by_name(tmp_path):
    check_format({"format": "f", "version": 1}, "f", 1, tmp_path)
    with pytest.raises(SlideError, match=r"f version 2, this program reads version 1"):
        check_format({"format": "f", "version": 2}, "f", 1, tmp_path)
    with pytest.raises(SlideError, match="format is None, expected 'f'"):
        check_format({}, "f", 1, tmp_path)


def test_differences_name_both_values(tmp_path):
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b: found 2, wanted 3",
        "c: found None, wanted 4",
    ]
    require_same({"a": 1}, {"a": 1}, tmp_path)
    with pytest.raises(SlideError, match=r"a: found 1, wanted 2.*--overwrite"):
        require_same({"a": 1}, {"a": 2}, tmp_path)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_sees_any_sampled_byte_and_the_size(tmp_path):
    path = tmp_path / "x.svs"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    first = slide_fingerprint(path)
    assert first == slide_fingerprint(path)
    for place in (0, 1 << 20, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert slide_fingerprint(path) != first
    path.write_bytes(content + b"x")
    assert slide_fingerprint(path) != first
    (tmp_path / "y.svs").write_bytes(content)
    assert slide_fingerprint(tmp_path / "y.svs") == first  # the name does not matter


def test_a_fingerprint_counts_every_file_of_a_dicom_folder(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(name.encode())
    first = slide_fingerprint(tmp_path)
    (tmp_path / "b.dcm").write_bytes(b"other")
    assert slide_fingerprint(tmp_path) != first


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
