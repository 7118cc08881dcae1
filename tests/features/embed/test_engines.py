"""Other engines give the features of torch."""

import shutil
import sys

import numpy as np
import pytest
from torch import nn

from features.config import EmbedSettings
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
    got = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32", engine="compile"))
    assert np.abs(got - expected).max() < 1e-3 * expected.std()
