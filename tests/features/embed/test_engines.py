"""Other engines give the features of torch."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from features.config import EmbedSettings
from features.embed.engines import pick_engine
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder, embed
from features.encoders import Preprocessing, freeze, load_encoder
from tiling.jobs.errors import RequestError


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "side"), [("efficientnet-lite0", 96), ("timm:vit_tiny_patch16_224", 224)])
def test_openvino_gives_the_same_features(tissue, name, side):
    encoder = load_encoder(name, "default" if name == "efficientnet-lite0" else "random")
    patches = tissue(3, side)
    expected = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32"))
    got = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32", batch_size=2, engine="openvino"))
    assert got.shape == expected.shape and np.abs(got - expected).max() < 1e-3 * expected.std()
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert (cosine > 0.999).all()


def test_an_engine_that_is_missing_is_a_wrong_request(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequestError, match="needs the extra `openvino`"):
        Embedder(load_encoder("resnet18", "random"), EmbedSettings(device="cpu", engine="openvino"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_network_gives_the_same_features(tissue):
    if shutil.which("g++") is None:
        pytest.skip("torch needs a C++ compiler")
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    as_it_is = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = freeze("small", layers, "random", 0, dim=8, preprocessing=as_it_is)
    patches = tissue(5, 64)
    expected = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32"))
    compiled = Embedder(encoder, EmbedSettings(device="cpu", precision="fp32", engine="compile"))
    compiled.embed(in_memory(patches))
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for count in (5, 1, 3):  # the ends of slides are no new shapes
        got = compiled.embed(in_memory(patches[:count]))
        assert np.abs(got - expected[:count]).max() < 1e-3 * expected.std()
    assert graphs["unique_graphs"] == before
    for order in ([4, 2, 0], [1, 0, 4, 4, 2, 3]):  # and places and neighbours do not matter
        assert np.array_equal(compiled.embed(in_memory(patches[order])), compiled.embed(in_memory(patches))[order])


AUTO = EmbedSettings(device="cpu", precision="fp32", engine="auto")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("machine", "name"), [("x86_64", "openvino"), ("aarch64", "torch")])
def test_auto_goes_by_the_processor(tissue, monkeypatch, machine, name):
    monkeypatch.setattr("platform.machine", lambda: machine)
    encoder, patches = load_encoder("efficientnet-lite0"), tissue(3, 96)
    taken = Embedder(encoder, AUTO)
    assert taken.engine.startswith(name)
    expected = embed(encoder, patches, replace(AUTO, engine="torch"))
    got = taken.embed(in_memory(patches))
    assert ((got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1) >= 0.999).all()
    assert np.array_equal(got, expected) == (name == "torch")


def test_auto_is_torch_where_openvino_is_missing_or_was_not_faster(monkeypatch):
    cpu, model = torch.device("cpu"), nn.Sequential(nn.Conv2d(3, 8, 3))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert pick_engine("auto", model, cpu, "bf16") == "openvino"
    assert pick_engine("auto", model, torch.device("cuda"), "bf16") == "torch"
    assert pick_engine("auto", model, cpu, "fp16") == "torch"
    for name in ("timm:test_vit", "vit-b32"):
        assert pick_engine("auto", load_encoder(name, "random").model, cpu, "fp32") == "torch"
    assert pick_engine("compile", model, cpu, "fp32") == "compile"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pick_engine("auto", model, cpu, "fp32") == "torch"
