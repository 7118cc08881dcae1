"""STAMP's files: what it reads of ours, and its micrometres as our pixels."""

import math

import h5py
import numpy as np
import pytest
from foreign_features import INFO, as_stamp, made, ours, reasons

from features.feature_file import read_embeddings
from features.interop.reader import open_features
from tiling.jobs.errors import SlideError


def test_what_stamp_reads(convert, tmp_path):
    embeddings = ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out/s.h5") as file:
        assert file["feats"].dtype == np.float16 and file["coords"].dtype == np.float32
        assert np.array_equal(np.rint(file["coords"][:] / 0.2525), embeddings.coords_l0)
        attributes = dict(file.attrs)
    assert attributes["tile_size_um"] / attributes["tile_size_px"] == pytest.approx(INFO.mpp)
    assert (attributes["unit"], attributes["feat_type"], attributes["extractor"]) == ("um", "tile", "resnet18")


@pytest.mark.parametrize("mpp", [0.25, 0.2525, 0.24327, 1 / 3])
def test_stamps_micrometres_are_the_exact_pixels(convert, tmp_path, mpp):
    embeddings = made(2000, height_l0=10**6)
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * mpp)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--overlap-px", 0, "--width-l0", 90_000]
    flags += ["--height-l0", 70_000]
    assert convert(tmp_path / "stamp", *flags) == 1
    assert (
        "does not say: patch_size_l0, mpp_l0; give --patch-size-l0 (or --patch-um), --mpp-l0"
        in reasons(tmp_path / "out")["s"]
    )
    assert convert(tmp_path / "stamp", *flags, "--mpp-l0", repr(mpp)) == 0
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.array_equal(found.coords_l0, embeddings.coords_l0)
    assert (found.info.encoder, found.info.patch_size_px, found.info.patch_size_l0) == ("uni2", 224, round(256 / mpp))


def test_a_wrong_scale_puts_patches_outside_the_slide(convert, tmp_path):
    embeddings = made(500)
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * 0.5)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--overlap-px", 0, "--width-l0", 90_000]
    assert convert(tmp_path / "stamp", *flags, "--height-l0", 70_000, "--mpp-l0", 0.25) == 1
    assert "outside a slide of (90000, 70000) px; check --mpp-l0" in reasons(tmp_path / "out")["s"]


def test_stamp_files_that_are_something_else(tmp_path):
    path = as_stamp(tmp_path, "s", made().features, made().coords_l0)
    with h5py.File(path, "a") as file:
        file.attrs["feat_type"] = "slide"
    with pytest.raises(SlideError, match="feat_type is 'slide'"):
        open_features(tmp_path).read("s")
    with h5py.File(path, "a") as file:
        file.attrs["feat_type"] = "tile"
        del file.attrs["unit"], file.attrs["tile_size_um"]
        file.attrs["tile_size"] = 224
    with pytest.raises(SlideError, match=r"unit None and tile size None, expected coordinates in µm"):
        open_features(tmp_path).read("s")
    with h5py.File(path, "a") as file:  # version 2.0
        file.attrs.update(unit="um", tile_size=256.0)
    assert open_features(tmp_path).find("s").said.patch_size_um == 256


def test_a_slide_without_a_scale_is_given_one(convert, tmp_path):
    ours(tmp_path / "ours", "s", mpp_l0=math.nan, mpp=math.nan)
    flags = [tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "out"]
    assert convert(*flags) == 1 and "the slide has no scale; give --mpp-l0" in reasons(tmp_path / "out")["s"]
    assert convert(*flags, "--mpp-l0", 0.5) == 0
    info = open_features(tmp_path / "out").read("s").info
    assert (info.mpp_l0, info.mpp) == (0.5, 0.5 * 507 / 256)
