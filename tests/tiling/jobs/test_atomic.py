import threading

import pytest

from tiling.jobs.atomic import atomic_file, atomic_folder, write_json


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


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
