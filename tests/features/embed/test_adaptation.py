"""`--adapt-bn`: norms are estimated once and kept, and adapted features never mix with plain ones."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from features.embed import sample
from features.encoders import load_encoder
from features.feature_file import read_embeddings, read_statistics
from features.statistics.adapted_norms import FILE, adapt, read_norms


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    for i in range(4):
        make_store(tmp_path / "patches", f"s{i}", tissue(5, 64, seed=i) // (1 + i % 2))
    return tmp_path / "patches"


def test_parts_and_new_slides_get_the_network_of_the_whole(stores, extract, tmp_path):
    run = ("--device", "cpu", "--precision", "fp32")
    assert extract(stores, "--out", tmp_path / "whole", "--adapt-bn", *run) == 0
    for part in ("2/2", "1/2"):
        assert extract(stores, "--out", tmp_path / "parts", "--adapt-bn", "--part", part, *run) == 0
    norms = tmp_path / "whole" / FILE
    assert norms.read_bytes() == (tmp_path / "parts" / FILE).read_bytes()
    table = tmp_path / "one.csv"
    table.write_text("slide_id\ns3\n")
    assert extract(stores, "--out", tmp_path / "new", "--slides", table, "--adapted-norms", norms, *run) == 0
    assert extract(stores, "--out", tmp_path / "plain", *run) == 0
    whole, plain = (read_embeddings(tmp_path / name / "s3.h5") for name in ("whole", "plain"))
    for name in ("parts", "new"):
        other = read_embeddings(tmp_path / name / "s3.h5")
        assert other.info == whole.info and np.array_equal(other.features, whole.features)
    assert whole.info.weights == "random (seed 0), adapted batch norms"
    assert whole.info.weights_sha256 != plain.info.weights_sha256
    assert np.abs(whole.features - plain.features).max() > 0.01
    assert read_norms(norms).slides == 4 and read_norms(norms).patches == 20


def test_adapted_batch_norms_see_what_they_expect(stores, extract, tmp_path):
    assert extract(stores, "--out", tmp_path / "out", "--adapt-bn", "--device", "cpu", "--precision", "fp32") == 0
    norms = read_norms(tmp_path / "out" / FILE)
    model = adapt(load_encoder("resnet18", "random"), norms).unmerged
    mean = torch.cat([m.running_mean for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert np.allclose(mean, norms.mean, rtol=1e-6)
    found = [read_statistics(tmp_path / "out" / f"s{i}.h5") for i in range(4)]  # of one patch in 64, so of four
    seen = np.mean([s.norm_mean for s in found], 0)
    std = np.sqrt(norms.variance + 1e-5)
    plain = [m for m in load_encoder("resnet18", "random").unmerged.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = np.abs(seen - torch.cat([m.running_mean for m in plain]).numpy()) / std
    assert np.median(np.abs(seen - norms.mean) / std) < 0.5 * np.median(before)


def test_plain_and_adapted_features_and_other_networks_are_refused(stores, extract, tmp_path, capsys):
    out = tmp_path / "out"
    assert extract(stores, "--out", out, "--device", "cpu") == 0
    assert extract(stores, "--out", out, "--adapt-bn", "--device", "cpu") == 1
    assert "weights_sha256" in (out / "failures.csv").read_text()
    other = ("--out", tmp_path / "other", "--device", "cpu", "--seed", "1")
    assert extract(stores, *other, "--adapted-norms", out / FILE) == 2
    assert "batch norms of another network" in capsys.readouterr().err
    assert extract(stores, *other, "--adapted-norms", out / "s0.h5") == 2
    assert "not what --adapt-bn keeps" in capsys.readouterr().err
    assert extract(stores, *other, "--adapted-norms", out / FILE, "--adapt-bn") == 2
    assert "give one" in capsys.readouterr().err
    vit = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
    assert extract(stores, "--out", tmp_path / "vit", "--adapt-bn", "--device", "cpu", *vit) == 2
    assert "has no batch norms to adapt" in capsys.readouterr().err


def test_a_store_that_is_tiled_again_meanwhile_stops_the_estimate(
    stores, extract, make_store, tissue, tmp_path, monkeypatch, capsys
):
    opened = sample.patches_of

    @contextmanager
    def tiled_again(store, *of):
        with opened(store, *of) as source:
            make_store(stores, store.path.stem, tissue(2, 64, seed=9))  # fewer: old places are not there any more
            yield source

    monkeypatch.setattr(sample, "patches_of", tiled_again)
    assert extract(stores, "--out", tmp_path / "out", "--adapt-bn", "--device", "cpu") == 2
    assert "--adapt-bn: " in (said := capsys.readouterr().err) and "s0.zarr: was tiled again" in said
    assert not (tmp_path / "out" / FILE).exists()
