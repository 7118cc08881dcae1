"""Pathology models by name: built as published, their weights' names understood, refused where they do not fit."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from torch import nn

from features.config import EmbedSettings
from features.embed.pipe import Embedder, embed
from features.encoders import PRESETS, load_encoder, presets
from features.encoders.parts import ClassAndMean, ConvStem
from features.encoders.presets import HUB, Preset, find_preset
from features.encoders.transformers_layout import in_timms_names
from tiling.jobs.errors import RequestError

ROOT = Path(__file__).parents[3]
GOLDEN = load_file(ROOT / "tests/golden/transformers-vits.safetensors")  # random weights, and what transformers gives
MILLIONS = {  # of parameters, as published
    "uni": 303.4,
    "uni2-h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "h-optimus-0": 1134.8,
    "h-optimus-1": 1134.8,
    "h0-mini": 85.7,
    "prov-gigapath": 1135.0,
    "phikon": 85.8,
    "phikon-v2": 303.4,
    "midnight-12k": 1134.8,
    "kaiko-s16": 21.7,
    "kaiko-s8": 21.7,
    "kaiko-b16": 85.8,
    "kaiko-b8": 85.8,
    "kaiko-l14": 303.2,
    "gpfm": 303.2,
    "lunit-dino-s16": 21.7,
    "lunit-dino-s8": 21.7,
    "ctranspath": 27.5,
    "retccl": 23.5,
}


PAGE = {
    line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
    for line in (ROOT / ".docs/encoders.md").read_text().splitlines()
    if line.startswith("| `")
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_architecture_is_the_published_one(name):
    preset = PRESETS[name]
    with torch.device("meta"):  # shapes without numbers
        model = preset.build().eval()
        pooled = preset.pool(model) if preset.pool else model
        found = pooled(torch.zeros(2, 3, preset.input_px, preset.input_px))
    assert found.shape == (2, preset.dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)
    registers = re.search(r"(\d) registers", PAGE[name][4])
    assert getattr(model, "num_prefix_tokens", 1) == 1 + int(registers[1] if registers else 0)


def test_the_page_says_of_every_preset_what_it_is():
    assert PAGE.keys() == PRESETS.keys()
    for name, (source, dim, side, mpp, features, licence, _, normalisation) in PAGE.items():
        preset = PRESETS[name]
        assert preset.page in source and (int(dim), int(side)) == (preset.dim, preset.input_px), name
        assert tuple(float(scale) for scale in mpp.split(", ")) == preset.mpp and licence == preset.licence, name
        assert ("mean" in features) == (preset.pool is not None or name in ("ctranspath", "retccl")), name
        said = {"ImageNet": (0.485, 0.456, 0.406, 0.229, 0.224, 0.225), "0.5": (0.5,) * 6}.get(normalisation)
        said = said or tuple(map(float, re.findall(r"0\.\d+", normalisation)))
        assert said == pytest.approx(sum(preset.images, ()), abs=6e-4), name


def transformers_state(name):
    return {key.removeprefix(f"{name}."): value for key, value in GOLDEN.items() if key.startswith(f"{name}.")}


def small(architecture, side, **arguments):
    size = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0, "global_pool": ""}
    return timm.create_model(architecture, img_size=side, **size, **arguments).eval()


@pytest.mark.parametrize(
    ("name", "side", "model"),
    [
        ("dinov2", 56, lambda: small("vit_giant_patch14_dinov2", 56, mlp_ratio=6.0)),
        ("dinov2", 28, lambda: small("vit_giant_patch14_dinov2", 28, mlp_ratio=6.0)),  # position embeddings resampled
        ("dinov2-mlp", 28, lambda: small("vit_large_patch14_dinov2", 28)),
        ("vit", 32, lambda: small("vit_base_patch16_224", 32)),
    ],
)
def test_weights_of_transformers_give_in_timm_what_they_give_there(name, side, model):
    network = model()
    network.load_state_dict(presets._vit(transformers_state(name), network, antialias=False))
    images = torch.sin(torch.arange(2 * 3 * side * side) / 7.0).reshape(2, 3, side, side)
    with torch.inference_mode():
        found, expected = network(images), GOLDEN[f"{name}-{side}.tokens"]
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_weights_in_timms_names_stay_as_they_are():
    state = small("vit_base_patch16_224", 32).state_dict()
    assert in_timms_names(state) is state


@pytest.mark.parametrize("registers", [0, 4])
def test_class_and_mean_leave_registers_out(registers):
    tokens = small("vit_large_patch14_dinov2", 28, reg_tokens=registers, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)
    images = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        found, every = ClassAndMean(tokens)(images), tokens(images)
    assert every.shape[1] == 1 + registers + 4
    assert torch.equal(found, torch.cat([every[:, 0], every[:, -4:].mean(1)], 1))


@pytest.fixture
def shallow(monkeypatch):
    """Virchow2 with one narrow block, so that it can be computed here."""
    build = presets._virchow(reg_tokens=4, depth=1, embed_dim=32, num_heads=2)
    preset = Preset(PRESETS["virchow2"].page, build, 64, "terms", (0.5,), pool=ClassAndMean)
    monkeypatch.setitem(PRESETS, "virchow2", preset)
    monkeypatch.setitem(presets._BY_PAGE, preset.page.lower(), preset)
    return preset


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """cache(repository, file, state): the weights file in a hub cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository, file, state):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("a" * 40)
        save_file(state, snapshot / file)
        return snapshot / file

    return put


def test_a_preset_is_found_in_the_cache_by_its_name_and_by_its_repository(shallow, cache, tissue):
    torch.manual_seed(0)
    model = shallow.build()
    file = cache("paige-ai/Virchow2", "model.safetensors", model.state_dict())
    names = ("virchow2", f"{HUB}paige-ai/Virchow2", f"{HUB}paige-ai/Virchow2@{'a' * 40}")
    found = [load_encoder(name) for name in names] + [load_encoder("virchow2", str(file))]
    assert {encoder.weights_sha256 for encoder in found} == {found[0].weights_sha256}
    assert [encoder.name for encoder in found[:3]] == list(names)
    patches = tissue(2, 224)
    with torch.inference_mode():
        tokens = model.eval()(found[0].preprocessing.apply(torch.from_numpy(patches).permute(0, 3, 1, 2)))
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1).numpy()
    got = embed(found[0], patches, EmbedSettings(device="cpu", precision="fp32"))
    assert np.abs(got - expected).max() < 1e-4 * expected.std()
    assert found[0].preprocessing.mpp == (0.5,) and found[0].dim == 64


def test_weights_that_are_not_there_say_whose_they_are_and_how_to_get_them(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(
        PRESETS, "uni", Preset("MahmoodLab/UNI", lambda: small("vit_base_patch16_224", 32), 16, "terms")
    )
    with pytest.raises(RequestError) as refused:
        load_encoder("uni")
    for part in (
        "uni: not in the hub's cache",
        "terms",
        "huggingface.co/MahmoodLab/UNI",
        "hf download",
        "--weights FILE",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize("name", ["ctranspath", "retccl"])
def test_weights_that_are_on_no_hub_are_asked_for_as_a_file(name):
    with pytest.raises(RequestError, match=r"found by way of https://github.com/Xiyue-Wang/.*--weights FILE"):
        load_encoder(name)


def test_weights_of_another_network_are_refused(shallow, tmp_path):
    state = shallow.build().state_dict()
    state.pop("reg_token")
    save_file(state, tmp_path / "virchow.safetensors")
    with pytest.raises(RequestError, match=r"of another network \(1 missing.*\n  missing reg_token"):
        load_encoder("virchow2", str(tmp_path / "virchow.safetensors"))


def test_ctranspath_reads_its_old_names(tissue, tmp_path):
    """Its file is of an older timm: merging of patches ends a stage there, and masks are kept."""
    model = PRESETS["ctranspath"].build().eval()
    old = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
        for key, value in model.state_dict().items()
    } | {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(1),
    }
    torch.save({"model": old}, tmp_path / "ctranspath.pth")
    encoder = load_encoder("ctranspath", str(tmp_path / "ctranspath.pth"))
    patches = tissue(2, 224)
    with torch.inference_mode():
        expected = model(encoder.preprocessing.apply(torch.from_numpy(patches).permute(0, 3, 1, 2))).numpy()
    got = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32"))
    assert got.shape == (2, 768) and np.abs(got - expected).max() < 1e-3 * expected.std()
    with pytest.raises(RequestError, match="--input-px 256: ctranspath cannot take that size"):
        Embedder(encoder, EmbedSettings(input_px=256))


def test_retccl_is_torchvisions_resnet_before_its_classifier(tmp_path):
    torch.manual_seed(0)
    model = PRESETS["retccl"].build()
    torch.save(model.state_dict() | {"fc.weight": torch.zeros(128, 2048)}, tmp_path / "best_ckpt.pth")
    encoder = load_encoder("retccl", str(tmp_path / "best_ckpt.pth"))
    assert encoder.dim == 2048 and encoder.unmerged is not None  # batch norms can be adapted


def test_the_stem_of_ctranspath_quarters_the_image():
    stem = ConvStem(224, 4, 3, 96, nn.LayerNorm).eval()
    assert stem(torch.zeros(1, 3, 224, 224)).shape == (1, 56, 56, 96)


def test_names_that_are_no_presets():
    assert find_preset("resnet50") is None and find_preset("timm:vit_large_patch16_224") is None
    assert find_preset("MahmoodLab/UNI") is None and find_preset(f"{HUB}mahmoodlab/uni") is PRESETS["uni"]
