"""Moments of adapted batch norms are torch's own."""

import numpy as np
import torch
from torchvision import models as zoo

from features.encoders import load_encoder
from features.statistics.adapted_norms import estimate_norms


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
