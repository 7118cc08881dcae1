"""`--precision int8`: the network is calibrated once and kept, and its features never mix with others."""

import json
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from features.config import EmbedSettings
from features.embed import calibration
from features.embed.pipe import embed
from features.embed.sample import Sample, draw_sample
from features.encoders import load_encoder
from features.encoders.int8 import FILE, read_int8, write_int8
from features.feature_file import read_embeddings
from features.pipeline import find_stores
from tiling.jobs.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
NETWORK = "timm:test_resnet"  # a tiny one
SMALL = ("--encoder", NETWORK, "--weights", "random", "--device", "cpu", "--engine", "openvino")
INT8 = (*SMALL, "--precision", "int8")
FP32 = EmbedSettings(device="cpu", precision="fp32", engine="openvino")


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    for i in range(3):
        make_store(tmp_path / "patches", f"s{i}", tissue(8, 64, seed=i))
    return tmp_path / "patches"


def cosines(a, b):
    a, b = a.astype(np.float32), b.astype(np.float32)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_all_get_one_network_and_know_how_near_it_is(stores, extract, tmp_path, capsys, monkeypatch):
    parts, plain = tmp_path / "parts", tmp_path / "plain"
    kept = parts / FILE
    assert extract(stores, "--out", parts, "--part", "2/2", *INT8) == 0
    monkeypatch.setattr(calibration, "calibrate", None)  # nobody does it again
    assert extract(stores, "--out", parts, "--part", "1/2", *INT8) == 0
    network, said = read_int8(kept), capsys.readouterr().out
    near = f"6 others: {network.cosine_mean:.4f} on average, {network.cosine_lowest:.4f} at least"
    assert said.count(f"calibrated on 18 patches (slides: 3); cosine to fp32 of {near}") == 2

    table = tmp_path / "one.csv"
    table.write_text("slide_id\ns2\n")
    assert extract(stores, "--out", tmp_path / "new", "--slides", table, "--int8-network", kept, *INT8) == 0
    assert extract(stores, "--out", plain, *SMALL, "--precision", "fp32") == 0
    part, new, fp32 = (read_embeddings(folder / "s2.h5") for folder in (parts, tmp_path / "new", plain))
    assert new.info == part.info and np.array_equal(new.features, part.features)
    assert 0.9 < cosines(part.features, fp32.features).min() < 0.99999
    with h5py.File(parts / "s2.h5") as file:
        stored = json.loads(file.attrs["calibration"])
    for key in ("cosine_mean", "cosine_lowest", "patches", "held_back", "openvino", "nncf"):
        assert stored[key] == getattr(network, key)

    encoder = load_encoder(NETWORK, "random").in_int8(network)
    held_back = draw_sample(find_stores(stores), stores, calibration.PATCHES, 0, "").pixels[:6]
    there, here = (embed(encoder, held_back, settings) for settings in (FP32, replace(FP32, precision="int8")))
    assert np.isclose(cosines(there, here).mean(), network.cosine_mean, atol=1e-4)

    write_int8(tmp_path / FILE, replace(network, cosine_mean=0.97))
    for folder, differs in ((plain, "precision"), (parts, "calibration")):
        assert extract(stores, "--out", folder, *INT8, "--int8-network", tmp_path / FILE) == 1
        assert differs in (folder / "failures.csv").read_text()
    assert "int8 are far from those in fp32" in "".join(capsys.readouterr())
    other = ("--encoder", "resnet18", "--weights", "random", *INT8[4:])
    assert extract(stores, "--out", tmp_path / "other", *other, "--int8-network", kept) == 2
    assert "made of other weights" in capsys.readouterr().err


def test_a_network_for_any_size_takes_the_size_that_is_named(tissue):
    """As export-heatmaps --finer does, which names the size that the features' files have."""
    encoder, pixels = load_encoder("resnet18", "random"), tissue(12, 64, seed=0)
    int8 = replace(FP32, precision="int8")
    network = calibration.calibrate(encoder, Sample(pixels, 1))
    assert network.input_px == 0
    plain, named = (embed(encoder.in_int8(network), pixels, replace(int8, input_px=px)) for px in (0, 64))
    assert np.array_equal(plain, named)
    with pytest.raises(RequestError, match="calibrated for images of 64 px, not of any size"):
        embed(encoder.in_int8(replace(network, input_px=64)), pixels, int8)


def test_what_cannot_be_in_int8_is_a_wrong_request(stores, extract, tmp_path, capsys, monkeypatch):
    out = ("--out", tmp_path / "out", "--device", "cpu")
    assert extract(stores, *out, "--precision", "int8") == 2
    assert "add --engine openvino" in capsys.readouterr().err
    assert extract(stores, *out, "--int8-network", tmp_path / FILE) == 2
    assert "--int8-network is for --precision int8" in capsys.readouterr().err
    with pytest.raises(RequestError, match="that extract-features has calibrated"):
        embed(load_encoder("resnet18", "random"), np.zeros((1, 64, 64, 3), np.uint8), replace(FP32, precision="int8"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert extract(stores, *out, *INT8[6:]) == 2
    assert "needs the extra `int8`" in capsys.readouterr().err
