"""Objects are copied once: what has not changed is kept, and what is gone is removed."""

from unittest import mock

import pytest

from tiling.jobs.errors import RequestError
from tiling.jobs.locks import lock
from tiling.objects import folder as module
from tiling.objects.copies import copy_objects
from tiling.objects.files import BLOCK_BYTES, ObjectFile
from tiling.objects.folder import Found, folder_at


@pytest.fixture
def folder(objects, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    return folder_at(objects.place)


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_what_has_not_changed_is_not_copied_again(folder, objects, tmp_path):
    into = tmp_path / "copies"
    for name in ("a.h5", "b.h5", "c.h5", "note.txt", "below/d.h5"):
        folder.put(name, name.encode())
    assert copy_objects(folder, lambda name: name in ("a.h5", "b.h5"), into) == 2
    assert {path.name for path in into.glob("*.h5")} == {"a.h5", "b.h5"} and (into / "a.h5").read_bytes() == b"a.h5"
    folder.put("a.h5", b"A.h5")  # of the same size
    folder.delete(["b.h5"])
    (into / "c.h5").write_bytes(b"c")  # a stray file is no copy
    objects.requests.clear()
    assert copy_objects(folder, lambda name: name.endswith(".h5"), into) == 2 and objects.count("GET", ".h5") == 2
    assert {path.name: path.read_bytes() for path in into.glob("*.h5")} == {"a.h5": b"A.h5", "c.h5": b"c.h5"}
    assert copy_objects(folder, lambda name: name.endswith(".h5"), into) == 0


@pytest.mark.parametrize("e_tag", ["", '"x"'])
def test_where_a_store_gives_no_etag_the_time_of_change_tells(tmp_path, e_tag):
    """Which an answer gives in whole seconds and a listing may give finer."""
    folder, version = mock.Mock(), {"e_tag": e_tag} if e_tag else {}
    folder.read.side_effect = lambda name: (b"a.h5", Found(4, version, 100.0))
    folder.files.side_effect = [{"a.h5": Found(4, version, changed_s)} for changed_s in (100.2, 100.9, 101.0)]
    copied = [copy_objects(folder, lambda name: True, tmp_path) for _ in range(3)]
    assert copied == [1, 0, 0 if e_tag else 1]


def test_a_copy_that_breaks_off_is_finished_by_the_next_run(folder, objects, tmp_path):
    for name in ("a.h5", "b.h5"):
        folder.put(name, name.encode())
    objects.faults = {("GET", "b.h5"): [503] * 9}
    with pytest.raises(RequestError, match=r"cannot be copied: .*b.h5: the store cannot serve it now \(503"):
        copy_objects(folder, lambda name: True, tmp_path)
    assert (tmp_path / "a.h5").exists() and not (tmp_path / "b.h5").exists()
    assert copy_objects(folder, lambda name: True, tmp_path) == 1
    with lock(tmp_path / "copied.json"), pytest.raises(RequestError, match="another job is copying"):
        copy_objects(folder, lambda name: True, tmp_path)


def test_an_object_is_read_in_parts(folder, objects):
    data = bytes(range(256)) * 1500  # six blocks
    folder.put("f", data)
    objects.requests.clear()
    with ObjectFile(folder, "f") as file:
        assert (
            file.seek(0, 2) == len(data)
            and file.seek(BLOCK_BYTES - 5)
            and file.read(10) == data[BLOCK_BYTES - 5 :][:10]
        )
        file.seek(-7, 2)
        assert file.read() == data[-7:] and objects.count("GET") == 3
        file.seek(0)
        assert file.read() == data
