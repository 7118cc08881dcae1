"""A finished feature file is known at a look, and read again when it has changed."""

import os

import pytest

import features.making as making


def test_a_finished_file_is_read_once_and_again_when_it_changes(extract, make_store, tissue, tmp_path, monkeypatch):
    make_store(tmp_path / "patches", "s", tissue(3, 64))
    out, read, really = tmp_path / "out", [], making.read_info_and_dtype

    def noted(path):
        read.append(path.name)
        return really(path)

    monkeypatch.setattr(making, "read_info_and_dtype", noted)
    run = (tmp_path / "patches", "--out", out, "--encoder", "mobilenet-v3-small", "--weights", "random")
    assert extract(*run) == 0 and not read
    assert extract(*run) == 0 and read == ["s.h5"]  # it is too new for its time of change to tell
    os.utime(out / "s.h5", (1e9, 1e9))
    for _ in range(3):
        assert extract(*run) == 0
    assert read == ["s.h5"] * 2
    os.utime(out / "s.h5", (1e9 + 1, 1e9 + 1))
    assert extract(*run) == 0 and len(read) == 3
    assert extract(*run, "--features-dtype", "float32") == 1  # what is known is only what was asked for
    assert str(tmp_path) not in (out / "seen.json").read_text()
    (out / "seen.json").write_text("{ half")
    assert extract(*run) == 0


@pytest.mark.parametrize("change", ["store", "other weights"])
def test_what_is_known_of_a_file_is_what_made_it(extract, make_store, tissue, tmp_path, change):
    make_store(tmp_path / "patches", "s", tissue(3, 64))
    run = (tmp_path / "patches", "--out", tmp_path / "out", "--encoder", "mobilenet-v3-small", "--weights", "random")
    assert extract(*run) == 0
    os.utime(tmp_path / "out/s.h5", (1e9, 1e9))
    assert extract(*run) == extract(*run) == 0
    if change == "store":
        make_store(tmp_path / "patches", "s", tissue(3, 64, seed=1))
        assert extract(*run) == 1
    else:
        assert extract(*run, "--seed", "1") == 1
