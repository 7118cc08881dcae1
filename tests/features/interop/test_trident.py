"""TRIDENT's files: what it reads of ours, and what its files say and do not say."""

import math

import h5py
import numpy as np
from foreign_features import as_trident, made, ours, reasons

from features.feature_file import UNKNOWN, read_embeddings
from features.interop.reader import open_features


def test_what_trident_reads(convert, tmp_path):
    ours(tmp_path / "ours", "s", patch_size_l0=512, mpp_l0=0.25)
    ours(tmp_path / "ours", "unscaled", mpp_l0=math.nan)
    assert convert(tmp_path / "ours", "--to", "trident", "--out", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out/features_resnet18/s.h5") as file:
        assert dict(file["coords"].attrs) == {
            "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
            "overlap": 16, "name": "s", "savetodir": "features_resnet18", "level0_width": 90_000,
            "level0_height": 70_000,
        }  # fmt: skip
        assert file["features"].attrs["encoder"] == "resnet18" and file["features"].dtype == np.float16
        assert file["coords"].dtype == np.int64
    with h5py.File(tmp_path / "out/features_resnet18/unscaled.h5") as file:
        assert "level0_magnification" not in file["coords"].attrs


def test_trident_says_all_but_the_scale(convert, tmp_path):
    embeddings = made()
    as_trident(tmp_path / "job", "s", embeddings.features, embeddings.coords_l0)
    assert convert(tmp_path / "job", "--to", "slidemil", "--out", tmp_path / "out") == 1
    assert "does not say: mpp_l0; give --mpp-l0" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "job", "--to", "slidemil", "--out", tmp_path / "out", "--mpp-l0", 0.24) == 0
    info = read_embeddings(tmp_path / "out/s.h5").info
    assert (info.encoder, info.patch_size_px, info.patch_size_l0, info.overlap_px) == ("uni_v1", 512, 1024, 0)
    assert (info.width_l0, info.height_l0, info.mpp_l0, info.mpp) == (90_000, 70_000, 0.24, 0.48)
    assert convert(tmp_path / "job", "--to", "clam", "--out", tmp_path / "clam") == 0  # which needs nothing


def test_older_trident_files(tmp_path):
    """Coordinates as floats, an encoder without a name, a slide without patches in the shape that TRIDENT gives it."""
    path = as_trident(tmp_path, "s", made().features, made().coords_l0)
    with h5py.File(path, "a") as file:
        floats = file["coords"][:] + 0.25
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        file["coords"] = floats
        file["coords"].attrs.update({**attributes, "patch_size_level0": 1024.0, "overlap": "NA"})
        file["features"].attrs["encoder"] = "None"
    found = open_features(tmp_path).read("s")
    assert np.array_equal(found.coords_l0, made().coords_l0) and found.info.encoder == UNKNOWN
    assert (found.info.patch_size_l0, found.info.overlap_px) == (1024, -1)
    with h5py.File(path, "a") as file:
        del file["coords"], file["features"]
        file["coords"], file["features"] = np.empty((0, 2), np.int64), np.empty(0, np.float32)
        file["features"].attrs["encoder"] = "None"
    assert open_features(tmp_path).read("s").features.shape == (0, 0)


def test_an_encoder_with_a_slash_makes_one_folder(convert, tmp_path):
    ours(tmp_path / "ours", "s", encoder="hub/vit")
    assert convert(tmp_path / "ours", "--to", "trident", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/features_hub-vit/s.h5").is_file()
    assert open_features(tmp_path / "out").read("s").info.encoder == "hub/vit"
