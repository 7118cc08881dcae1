"""Adaptive batch norms: the moments are torch's own, they are kept, and adapted features never mix with plain ones."""

import numpy as np
import pytest
import torch
from torchvision import models as zoo

from features.embed.patch_source import evenly_spaced
from features.encoders import load_encoder
from features.feature_file import read_embeddings, read_statistics
from features.statistics.adapted_norms import FILE, adapt, estimate_norms, read_norms


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    for i in range(4):
        make_store(tmp_path / "patches", f"s{i}", tissue(5, 64, seed=i) // (1 + i % 2))
    return tmp_path / "patches"


def test_moments_are_those_of_a_network_in_training_mode(tissue):
    encoder = load_encoder("resnet18", "random")
    images = torch.from_numpy(tissue(12, 64)).permute(0, 3, 1, 2)
    found = estimate_norms(encoder, [images], torch.device("cpu"))
    model = zoo.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(encoder.unmerged.state_dict())
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    counts = []
    for norm in norms:
        norm.momentum = 1.0
        norm.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel() // inputs[0].shape[1]))
    pixel_mean, pixel_std = (torch.tensor(v) for v in (encoder.preprocessing.mean, encoder.preprocessing.std))
    normal = (images.permute(0, 2, 3, 1) / 255 - pixel_mean) / pixel_std
    with torch.no_grad():
        model.train()(normal.permute(0, 3, 1, 2))
    mean = torch.cat([norm.running_mean for norm in norms]).numpy()
    variance = torch.cat([n.running_var * (c - 1) / c for n, c in zip(norms, counts, strict=True)]).numpy()
    assert found.patches == 12
    assert np.allclose(found.mean, mean, atol=1e-3) and np.allclose(found.variance, variance, rtol=2e-3, atol=1e-5)


def test_steps_add_up_with_what_lies_between_them(tissue):
    encoder = load_encoder("resnet18", "random")
    dark, light = (torch.full((4, 3, 64, 64), v, dtype=torch.uint8) for v in (60, 180))
    found = estimate_norms(encoder, [dark, light], torch.device("cpu"))
    each = [estimate_norms(encoder, [part], torch.device("cpu")) for part in (dark, light)]
    first = slice(0, 64)  # of the first batch norm, in front of which nothing is normalised
    between = ((each[0].mean - each[1].mean) / 2)[first] ** 2
    within = (each[0].variance + each[1].variance)[first] / 2
    assert between.max() > 0.01 and np.allclose(found.variance[first], within + between, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("count", "wanted"), [(1, 5), (7, 3), (100, 8), (3, 3)])
def test_evenly_spaced_indices_are_different_and_there(count, wanted):
    found = evenly_spaced(count, wanted)
    assert len(set(found)) == min(count, wanted) and min(found) >= 0 and max(found) < count
    assert found == sorted(found) and abs(np.mean(found) - (count - 1) / 2) <= 0.5


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
    assert "not the statistics that --adapt-bn keeps" in capsys.readouterr().err
    assert extract(stores, *other, "--adapted-norms", out / FILE, "--adapt-bn") == 2
    assert "give one" in capsys.readouterr().err
    vit = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
    assert extract(stores, "--out", tmp_path / "vit", "--adapt-bn", "--device", "cpu", *vit) == 2
    assert "has no batch norms to adapt" in capsys.readouterr().err
