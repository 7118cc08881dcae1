"""An encoder that another package brings by entry point."""

import pytest

from features.config import EmbedSettings
from features.embed.pipe import embed
from features.encoders import load_encoder
from tiling.jobs.errors import RequestError

MODULE = """
import torch
from torch import nn
from features.encoders import Preprocessing, freeze, set_weights


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.mean((2, 3)) * self.scale


def doubled(weights, seed):
    model = Mean()
    set_weights(model, weights, seed, default=lambda: {"scale": torch.full((3,), 2.0)})
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, input_px=32)
    return freeze("doubled", model, weights, seed, dim=3, preprocessing=preprocessing)


def nothing(weights, seed):
    return None
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """distribution(package, *lines): a package on the path that names these encoders."""

    def install(package, *lines):
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(MODULE)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[slidemil.encoders]", *lines, ""]))
        monkeypatch.syspath_prepend(folder)

    return install


def test_an_installed_encoder_is_found_by_its_name(distribution, tissue):
    distribution("their_nets", "doubled = their_nets:doubled")
    encoder, patches = load_encoder("doubled"), tissue(3, 32)
    expected = 2 * (patches.mean((1, 2)) / 255 - 0.5) / 0.25
    assert abs(embed(encoder, patches, EmbedSettings(precision="fp32")) - expected).max() < 1e-5
    assert (encoder.name, encoder.dim, encoder.weights) == ("doubled", 3, "default")
    assert encoder.weights_sha256 != load_encoder("doubled", "random").weights_sha256
    with pytest.raises(RequestError, match=r"no such encoder; close to it are .*doubled"):
        load_encoder("double")


def test_the_names_of_the_zoo_stay_its_own(distribution):
    distribution("impostor", "efficientnet-lite0 = impostor:doubled")
    assert load_encoder("efficientnet-lite0").dim == 1280


def test_what_an_installed_package_does_wrong_is_said(distribution):
    distribution(
        "broken_nets",
        "nothing = broken_nets:nothing",
        "absent = broken_nets:absent",
        "lost = no_such_module:net",
        "twice = broken_nets:doubled",
    )
    distribution("second", "twice = second:doubled")
    for name, message in {
        "nothing": "broken_nets:nothing returned a NoneType, expected an Encoder",
        "absent": "cannot import broken_nets:absent",
        "lost": "cannot import no_such_module:net",
        "twice": "broken_nets:doubled and second:doubled both go by this name",
    }.items():
        with pytest.raises(RequestError, match=f"--encoder {name}: .*{message}"):
            load_encoder(name)
