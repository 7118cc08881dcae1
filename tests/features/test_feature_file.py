"""The feature file contract: exact values from the golden file, and refusal of what breaks it."""

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.feature_file import (
    EmbeddingInfo,
    Embeddings,
    SlideStatistics,
    read_embeddings,
    read_info,
    read_info_and_dtype,
    write_embeddings,
)
from tiling.jobs.errors import SlideError

GOLDEN = Path(__file__).parents[1] / "golden"
INFO = EmbeddingInfo(
    slide_id="golden",
    store_digest="d" * 64,
    encoder="resnet18",
    weights="random (seed 0)",
    weights_sha256="e" * 64,
    input_px=256,
    normalisation="mean=(0.485, 0.456, 0.406) std=(0.229, 0.224, 0.225)",
    precision="bf16",
    patch_size_px=256,
    patch_size_l0=512,
    overlap_px=0,
    width_l0=4000,
    height_l0=3008,
    mpp_l0=0.25,
    mpp=0.5,
    resizing="bilinear, rules 1",
    decoder="simplejpeg 1.8.2",
    engine="torch 2.9.1 on cuda",
)
FEATURES = np.array([[0.0, 0.5, -1.25, 3.0], [65504.0, 2.0**-24, 1.0, -0.75], [7.0, 8.0, 9.0, 10.0]], np.float16)
COORDS = np.array([[0, 0], [512, 0], [1024, 2**33]], np.int64)


@pytest.mark.parametrize("version", [1, 2])
def test_each_version_is_read_with_exact_values(version):
    file = GOLDEN / f"features-v{version}.h5"
    found = read_embeddings(file)
    info = INFO if version == 2 else replace(INFO, resizing="unknown", decoder="unknown", engine="unknown")
    assert found.info == info == read_info(file)
    assert (found.features == FEATURES).all() and found.features.dtype == np.float16
    assert (found.coords_l0 == COORDS).all() and found.coords_l0.dtype == np.int64
    assert read_info_and_dtype(file)[1] == "float16"


def test_what_is_written_today_is_version_2(tmp_path):
    write_embeddings(tmp_path / "new.h5", Embeddings(FEATURES, COORDS, INFO))
    with h5py.File(GOLDEN / "features-v2.h5") as golden, h5py.File(tmp_path / "new.h5") as new:
        assert set(new) == set(golden) and dict(new.attrs) == {**golden.attrs, "input_mpp": 0.5}
        assert dict(new["coords"].attrs) == dict(golden["coords"].attrs)
        assert new["coords"].attrs["patch_size_level0"] == 512 and new["coords"].attrs["level0_width"] == 4000


def test_a_file_says_which_scale_the_network_saw(tmp_path):
    resized = replace(INFO, patch_size_px=512, input_px=224)
    write_embeddings(tmp_path / "new.h5", Embeddings(FEATURES, COORDS, resized))
    with h5py.File(tmp_path / "new.h5") as file:
        assert file.attrs["input_mpp"] == pytest.approx(0.5 * 512 / 224)
    assert read_info(tmp_path / "new.h5") == resized
    assert math.isnan(replace(INFO, input_px=0).input_mpp)


def test_another_version_is_refused_by_name(tmp_path):
    file = Path(shutil.copy(GOLDEN / "features-v2.h5", tmp_path / "future.h5"))
    with h5py.File(file, "a") as h5:
        h5.attrs["version"] = 3
    with pytest.raises(SlideError, match=r"future\.h5: slidemil-features version 3, this program reads version 2"):
        read_embeddings(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda h5: h5.attrs.pop("encoder"), "'encoder' is missing"),
        (lambda h5: h5.attrs.pop("engine"), "'engine' is missing"),
        (lambda h5: h5.attrs.modify("format", "else"), "format is 'else'"),
        (lambda h5: h5.pop("coords"), "damaged feature file"),
        (lambda h5: (h5.pop("coords"), h5.create_dataset("coords", data=COORDS[:2])), "do not belong together"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused(tmp_path, damage, message):
    file = Path(shutil.copy(GOLDEN / "features-v2.h5", tmp_path / "slide.h5"))
    with h5py.File(file, "a") as h5:
        damage(h5)
    with pytest.raises(SlideError, match=f"slide.h5.*{message}"):
        read_embeddings(file)


def test_a_fingerprint_is_kept_and_an_unknown_one_leaves_no_trace(tmp_path):
    import h5py

    for name, fingerprint in (("known", "f" * 64), ("unknown", "")):
        write_embeddings(
            tmp_path / f"{name}.h5", Embeddings(FEATURES, COORDS, replace(INFO, slide_fingerprint=fingerprint))
        )
        assert read_info(tmp_path / f"{name}.h5").slide_fingerprint == fingerprint
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert ("slide_fingerprint" in file.attrs) == bool(fingerprint)


def test_a_missing_and_a_cut_file_are_told_apart(tmp_path):
    with pytest.raises(SlideError, match="no such feature file"):
        read_info(tmp_path / "none.h5")
    (tmp_path / "cut.h5").write_bytes((GOLDEN / "features-v2.h5").read_bytes()[:500])
    with pytest.raises(SlideError, match=r"cut\.h5: not a readable HDF5 file"):
        read_info(tmp_path / "cut.h5")


@pytest.mark.parametrize("rows", [0, 1, 1023, 1025])
def test_any_number_of_rows_survives(tmp_path, rows):
    features = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
    coords = np.arange(2 * rows).reshape(rows, 2)
    info = replace(INFO, mpp=math.nan, mpp_l0=math.nan)
    write_embeddings(tmp_path / "s.h5", Embeddings(features, coords, info))
    found = read_embeddings(tmp_path / "s.h5")
    assert found.features.dtype == np.float32 and found.features.shape == (rows, 5)
    assert (found.features == features).all() and (found.coords_l0 == coords).all()
    assert math.isnan(found.info.mpp) and asdict(found.info).keys() == asdict(info).keys()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_never_written(tmp_path, bad):
    features = FEATURES.copy()
    features[1, 2] = bad
    with pytest.raises(SlideError, match="NaN or infinity"):
        write_embeddings(tmp_path / "s.h5", Embeddings(features, COORDS, INFO))
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_do_not_depend_on_when_python_drops_a_data_set(tmp_path, monkeypatch):
    create, kept = h5py.Group.create_dataset, []

    def keep(*arguments, **settings):
        kept.append(create(*arguments, **settings))
        return kept[-1]

    statistics = SlideStatistics(9, np.zeros(3), np.ones(3), 1, {"norm": 4}, np.zeros(4), np.ones(4))
    write_embeddings(tmp_path / "dropped.h5", Embeddings(FEATURES, COORDS, INFO), statistics)
    monkeypatch.setattr(h5py.Group, "create_dataset", keep)
    write_embeddings(tmp_path / "kept.h5", Embeddings(FEATURES, COORDS, INFO), statistics)
    assert len(kept) == 6
    assert (tmp_path / "kept.h5").read_bytes() == (tmp_path / "dropped.h5").read_bytes()
