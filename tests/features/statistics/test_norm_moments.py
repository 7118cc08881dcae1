"""What batch norms see against a plain network."""

import json

import numpy as np
import torch
import torchvision.models as zoo

from features.encoders import load_encoder
from features.feature_file import read_statistics
from features.statistics.norm_moments import norm_moments


def test_batch_norm_inputs_are_those_of_the_plain_network(extract, make_store, tissue, tmp_path):
    patches = tissue(130, 64)
    make_store(tmp_path / "patches", "s", patches)
    assert extract(tmp_path / "patches", "--out", tmp_path / "out", "--precision", "fp32", "--device", "cpu") == 0
    found = read_statistics(tmp_path / "out/s.h5")
    encoder = load_encoder("resnet18", "random")
    model = zoo.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(encoder.unmerged.state_dict())
    seen = {}
    for name, module in model.eval().double().named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0]}))
    normal = (patches[[0, 64, 128]] / 255 - np.array(encoder.preprocessing.mean)) / np.array(encoder.preprocessing.std)
    with torch.no_grad():
        model(torch.from_numpy(normal).permute(0, 3, 1, 2))
    expected = torch.cat([seen[name].mean((0, 2, 3)) for name in found.norm_layers])
    variance = torch.cat([seen[name].var((0, 2, 3), correction=0) for name in found.norm_layers])
    assert found.norm_patches == 3 and len(found.norm_layers) == 20
    assert np.allclose(found.norm_mean, expected, rtol=1e-3, atol=1e-3 * float(variance.mean().sqrt()))
    assert np.allclose(found.norm_var, variance, rtol=1e-3)
    cohort = json.loads((tmp_path / "out/statistics.json").read_text())
    assert cohort["batch_norm"] == {"patches": 3}  # random weights have no distance to ImageNet


def test_moments_of_two_parts_add_up_to_those_of_the_whole(tissue):
    encoder, cpu = load_encoder("resnet18", "random"), torch.device("cpu")
    images = torch.from_numpy(tissue(7, 64)).permute(0, 3, 1, 2)
    whole = norm_moments(encoder, [images], cpu)
    parts = norm_moments(encoder, [images[:2]], cpu) + norm_moments(encoder, [images[2:]], cpu)
    assert (whole.patches, len(whole.layers), len(whole.mean)) == (7, 20, sum(whole.layers.values()))
    assert np.allclose(parts.mean, whole.mean, rtol=1e-5, atol=1e-6)
    assert np.allclose(parts.variance, whole.variance, rtol=1e-4)
    nothing = norm_moments(encoder, [], cpu)
    assert nothing.patches == 0 and np.isnan(nothing.mean).all() and np.isnan(nothing.variance).all()
    assert np.array_equal((nothing + whole).mean, whole.mean)


def test_the_network_that_is_looked_at_stays_as_it_was(tissue):
    encoder = load_encoder("resnet18", "random")
    before = {name: value.clone() for name, value in encoder.unmerged.state_dict().items()}
    images = torch.from_numpy(tissue(3, 64)).permute(0, 3, 1, 2)
    plain, own = (norm_moments(encoder, [images], torch.device("cpu"), renormalise=r) for r in (False, True))
    first = slice(0, 64)  # of the first batch norm, in front of which nothing is normalised
    assert np.array_equal(own.mean[first], plain.mean[first]) and not np.allclose(own.mean, plain.mean, rtol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.unmerged.state_dict().items())
    assert not any(module._forward_pre_hooks for module in encoder.unmerged.modules())
