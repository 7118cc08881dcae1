"""Feature files in an object store: the same bytes as in a folder, skipped by small reads, one writer's alone."""

import threading

import pytest

from features import extract
from features.feature_file import read_info_and_dtype
from tiling.jobs.errors import RequestError
from tiling.objects import folder as module
from tiling.objects.files import ObjectFile
from tiling.objects.folder import folder_at
from tiling.store.objects import put_store

SETTINGS = {"encoder": "resnet18", "weights": "random", "precision": "fp32"}


@pytest.fixture
def folder(objects, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    return folder_at(objects.place)


@pytest.fixture
def patches(folder, make_store, tissue, tmp_path):
    """The same stores in a local folder and in the object store."""
    for seed, name in enumerate("ab"):
        put_store(folder.below("patches"), make_store(tmp_path / "patches", name, tissue(5, 64, seed)))
    return tmp_path / "patches"


def test_files_are_those_of_a_local_run_wherever_patches_and_features_lie(folder, objects, patches, tmp_path):
    here = tmp_path / "features"
    assert extract(patches, here, **SETTINGS).counts == {"done": 2}
    objects.faults = {
        ("GET", "patches/c/0/0/0/0"): ["cut", 503],
        ("PUT", "a.h5"): [503, "cut"],
        ("PUT", "b.h5"): ["lost"],
    }
    there = f"{objects.place}/features"
    done = extract(f"{objects.place}/patches", there, **SETTINGS)
    assert done.counts == {"done": 2} and done.out == there, done.failed
    for name in ("a.h5", "b.h5"):
        assert folder.read(f"features/{name}")[0] == (here / name).read_bytes()
    assert set(folder.below("features").files()) == {"a.h5", "b.h5", "statistics.json", "summary.json"}
    assert folder.read("features/statistics.json")[0] == (here / "statistics.json").read_bytes()
    objects.requests.clear()
    assert extract(f"{objects.place}/patches", there, **SETTINGS).counts == {"skipped": 2}
    assert not objects.count("GET", "/0") and objects.count("GET", "/bucket") <= 4  # no patch; listings
    assert extract(f"{objects.place}/patches", here, **SETTINGS).counts == {"skipped": 2}
    assert not list(tmp_path.glob("slidemil-*/*"))
    with pytest.raises(RequestError, match=r"features/a.h5 exists and was made differently \(weights_sha256"):
        extract(patches, there, seed=1, **SETTINGS)
    assert extract(patches, there, seed=1, overwrite=True, **SETTINGS).counts == {"done": 2}
    with ObjectFile(folder, "features/a.h5") as file:
        assert read_info_and_dtype(tmp_path, file)[1] == "float16"
    with pytest.raises(RequestError, match=r"--adapt-bn .* have to be local folders"):
        extract(patches, there, adapt_bn=True, **SETTINGS)


def test_of_two_runs_at_once_one_makes_a_slide(folder, objects, patches):
    there, counts = f"{objects.place}/features", []
    objects.faults = {("PUT", "a.h5"): ["hold"]}
    first = threading.Thread(target=lambda: counts.append(extract(patches, there, **SETTINGS).counts))
    first.start()
    assert objects.held.wait(30)
    second = extract(patches, there, **SETTINGS)
    objects.release.set()
    first.join()
    assert second.counts["locked"] >= 1 and counts == [{"done": 2}] and not second.failed
    assert set(folder.below("features").files()) == {"a.h5", "b.h5", "statistics.json", "summary.json"}
