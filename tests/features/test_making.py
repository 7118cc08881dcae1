"""A finished feature file is known at a look, and read again when it has changed."""

import json
import os

import pandas as pd
import pytest

from features import making, pipeline
from tiling.jobs.locks import lock


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


def test_where_all_is_there_no_slide_is_taken_up_and_the_statistics_stay(extract, stores, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = (stores, "--out", out, "--device", "cpu")
    assert extract(*run) == 0
    statistics = out / "statistics.json"
    first = statistics.stat().st_mtime_ns
    with monkeypatch.context() as refusing:
        refusing.setattr(pipeline, "_extract_slide", lambda *_, **__: pytest.fail("a slide was taken up"))
        assert extract(*run) == 0
    assert json.loads((out / "summary.json").read_text())["counts"] == {"skipped": 3}
    assert statistics.stat().st_mtime_ns == first
    (out / "b.h5").unlink()
    assert extract(*run) == 0
    assert json.loads((out / "summary.json").read_text())["counts"] == {"done": 1, "skipped": 2}
    assert statistics.stat().st_mtime_ns > first
    assert (
        extract(*run, "--features-dtype", "float32") == 1
        and "made differently" in pd.read_csv(out / "failures.csv", index_col="slide_id").loc["a", "reason"]
    )
    first = statistics.stat().st_mtime_ns
    (out / "b.h5").unlink()
    (stores / "b.zarr").rename(tmp_path / "away.zarr")  # so that nothing is made anew
    assert extract(*run) == 0 and statistics.stat().st_mtime_ns > first
    assert json.loads(statistics.read_text())["slides"] == 1  # a; the other one is empty


def test_a_slide_that_another_job_holds_is_no_finished_one(extract, stores, tmp_path):
    out = tmp_path / "out"
    assert extract(stores, "--out", out, "--device", "cpu") == 0
    with lock(out / "a.h5"):
        assert extract(stores, "--out", out, "--device", "cpu") == 0
    assert json.loads((out / "summary.json").read_text())["counts"] == {"locked": 1, "skipped": 2}
