"""`extract-features --check` says what a run would do, and leaves nothing behind."""

import numpy as np
import pytest

from features import check as checks
from features.config import FeatureConfig
from features.encoders import load_encoder
from features.pipeline import find_stores

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    for name, count in (("a", 9), ("b", 4), ("empty", 0)):
        make_store(tmp_path / "patches", name, tissue(count, 64, seed=count))
    return tmp_path / "patches"


def lines(text):
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in text.splitlines()}


def test_it_says_what_there_is_to_do_and_writes_nothing(extract, stores, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert extract(stores, "--out", tmp_path / "a/b", "--check", *CPU) == 0
    said = lines(capsys.readouterr().out)
    sha = load_encoder("resnet18", "random").weights_sha256[:12]
    assert said["encoder"] == f"resnet18, weights random (seed 0) (sha256 {sha}), 512 features"
    assert said["device"].startswith("cpu, ") and "fp32, torch" in said["device"]
    assert said["input"] == "patches of 64 px at 0.5 µm/px, by zstd, lossless"
    assert said["slides"] == "3: 3 to do with 13 patches, 0 done already, 0 that cannot be done"
    assert said["disk"].startswith(
        f"{(13 * (512 * 2 + 16) + 3 * 16_384) / 1000:.3g} kB to be written to {tmp_path}/a/b"
    )
    assert "patches a second (13 in " in said["speed"] and said["time"].startswith("about ")
    assert "free" in said["memory"] and said["nothing"].endswith("ready: the same command without --check does it")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_done_is_not_counted_again(extract, stores, tmp_path, capsys):
    assert extract(stores, "--out", tmp_path / "out", *CPU) == 0
    (tmp_path / "out/b.h5").unlink()
    capsys.readouterr()
    assert extract(stores, "--out", tmp_path / "out", "--check", *CPU) == 0
    assert lines(capsys.readouterr().out)["slides"].startswith("3: 1 to do with 4 patches, 2 done already")
    assert extract(stores, "--out", tmp_path / "out", *CPU) == 0
    assert extract(stores, "--out", tmp_path / "out", "--check", *CPU) == 0
    assert capsys.readouterr().out.endswith("nothing was written; there is nothing left to do\n")
    assert extract(stores, "--out", tmp_path / "out", "--check", "--seed", 1, *CPU) == 1
    said = capsys.readouterr().out
    assert "weights_sha256" in said and "not all can be done" in said


def test_faults_of_many_slides_are_said_once(extract, stores, tmp_path, capsys, make_store, tissue):
    for i in range(3):
        make_store(stores, f"more{i}", tissue(2, 64, seed=i))
    (stores / "b.zarr/zarr.json").write_text("{")
    assert extract(stores, "--out", tmp_path / "out", "--encoder", "kaiko-s16", "--weights", "random", "--check") == 1
    said = capsys.readouterr().out
    faults = [line for line in said.splitlines() if line.startswith("fault")]
    assert len(faults) == 2 and "6: 0 to do with 0 patches, 0 done already, 6 that cannot be done" in said
    assert any(line.split()[1] == "b:" and "damaged zarr.json" in line for line in faults)
    assert any("a, empty, more0 and 2 more slides: kaiko-s16 was trained" in line for line in faults)
    assert "tile-slides --mpp 0.5 --patch-px 224" in said


def test_a_disk_that_is_too_small_is_a_fault(stores, tmp_path, monkeypatch):
    config = FeatureConfig("resnet18", "random", device="cpu")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 60_000})())
    found = checks.check(find_stores(stores), config, stores, tmp_path / "out")
    assert found.faults and "62.7 kB are to be written and 60 kB are free" in found.faults[0]


def test_several_encoders_are_timed_together(extract, stores, tmp_path, capsys):
    run = ("--encoder", "resnet18,timm:test_vit", "--weights", "random", "--check")
    assert extract(stores, "--out", tmp_path / "out", *run, *CPU) == 0
    said = capsys.readouterr().out
    assert said.count("encoder ") == 2 and said.count("speed ") == 1
    assert "patches of 64 px at 0.5 µm/px, resized to 160 px: 0.2 µm/px" in said


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (89, "1 min"), (3600 * 13 + 46 * 60, "13 h 46 min")])
def test_durations_are_said_as_people_do(seconds, said):
    assert checks._duration(seconds) == said


def test_speed_follows_from_the_seconds(monkeypatch, stores):
    clock = iter(np.arange(100) * 2.0)  # each embedding takes 2 s
    monkeypatch.setattr(checks.time, "perf_counter", lambda: next(clock))
    config = FeatureConfig("resnet18", "random", device="cpu", batch_size=1)
    found = dict(checks.check(find_stores(stores), config, stores, stores.parent / "out").lines)
    assert found["speed"].startswith("6 patches a second (12 in 2.0 s") and found["time"] == "about 2 s on this machine"
