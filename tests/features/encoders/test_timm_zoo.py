"""timm's networks and those of the hub against timm's own pipeline; the hub is a cache folder made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from features.config import EmbedSettings
from features.embed.pipe import Embedder, embed
from features.encoders import load_encoder
from features.feature_file import read_embeddings
from tiling.jobs.errors import RequestError

ROOT = Path(__file__).parents[3]
STAIN = {"mean": (0.7, 0.6, 0.7), "std": (0.2, 0.21, 0.18)}


def plain_features(model, patches):
    """One image at a time, transforms as timm makes them for this model, before its classifier."""
    settings = {**resolve_model_data_config(model.eval()), "crop_pct": 1.0}
    transforms = create_transform(**settings)
    with torch.inference_mode():
        images = (transforms(Image.fromarray(patch)).unsqueeze(0) for patch in patches)
        rows = [model.forward_head(model.forward_features(image), pre_logits=True) for image in images]
    return torch.cat(rows).numpy()


def centred_cosine(a, b):
    a, b = a - b.mean(0), b - b.mean(0)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(repository, architecture, …): a random model in a hub cache below tmp_path / "home", and the model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))

    def publish(repository, architecture="test_vit", spoil=lambda state: state, **arguments):
        torch.manual_seed(3)
        model = timm.create_model(architecture, **arguments)
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "pos_embed" in name:
                nn.init.uniform_(parameter, 0.1, 0.9)
        folder = tmp_path / "home/hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("a" * 40)
        save_file(spoil(dict(model.state_dict())), snapshot / "model.safetensors")
        model.pretrained_cfg = {**model.pretrained_cfg, **STAIN, "interpolation": "bilinear"}
        configuration = {
            "architecture": architecture,
            "num_classes": model.num_classes,
            "model_args": arguments,
            "pretrained_cfg": {k: v for k, v in model.pretrained_cfg.items() if k != "hf_hub_id"},
        }
        (snapshot / "config.json").write_text(json.dumps(configuration, default=str))
        return model

    return publish


TWO_RUNS = """
import sys
from features.cli import main
for encoder in sys.argv.pop().split():
    arguments = list(sys.argv)
    sys.argv += ["--encoder", encoder]
    try:
        main()
    except SystemExit as stopped:
        print("exit code", stopped.code)
    sys.argv = arguments
"""


def test_a_model_of_the_hub_is_found_in_the_cache_offline(hub, make_store, tissue, tmp_path):
    patches = tissue(3, 160)
    expected = plain_features(hub("lab/pathology", num_classes=0, init_values=1e-5), patches)
    make_store(tmp_path / "patches", "s", patches)
    run = [tmp_path / "patches", "--out", tmp_path / "out", "--precision", "fp32", "--features-dtype", "float32"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWO_RUNS, *map(str, run), "timm:hf-hub:lab/pathology timm:hf-hub:lab/unknown"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert [line for line in done.stdout.splitlines() if "exit code" in line] == ["exit code 0", "exit code 2"]
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.abs(found.features - expected).max() < 1e-4 * expected.std()
    assert found.info.encoder == "timm:hf-hub:lab/pathology" and found.info.input_px == 160
    assert found.info.normalisation == f"mean={STAIN['mean']} std={STAIN['std']}"

    for part in (str(tmp_path / "home"), "hf download lab/unknown", "models--lab--unknown", "HF_HOME"):
        assert part in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_tokens_without_pooling_are_refused(hub):
    hub("lab/tokens", num_classes=0, global_pool="")
    with pytest.raises(RequestError, match=r"gives \(1, 101, 64\) for one image, not one vector"):
        load_encoder("timm:hf-hub:lab/tokens")


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_that_lack_something_are_refused(hub, classes):
    def spoil(state):
        return {k: v for k, v in state.items() if "blocks.1.attn" not in k}

    hub("lab/partial", num_classes=classes, spoil=spoil)
    with pytest.raises(RequestError, match=r"Missing key\(s\) in state_dict: blocks\.1\.attn\.qkv\.weight, "):
        load_encoder("timm:hf-hub:lab/partial")


def test_the_classifier_of_a_hub_model_is_left_out_and_its_weights_can_be_a_file(hub, tissue, tmp_path):
    model, patches = hub("lab/classes", num_classes=7), tissue(2, 160)
    default = load_encoder("timm:hf-hub:lab/classes@" + "a" * 40)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    own = load_encoder("timm:hf-hub:lab/classes", str(tmp_path / "own.safetensors"))
    assert own.weights == "own.safetensors" and own.weights_sha256 == default.weights_sha256
    expected = plain_features(model, patches)
    assert np.abs(embed(default, patches, EmbedSettings(precision="fp32")) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "test_convnext",
        "test_vit",
        "test_vit3",
        "test_maxvit",
        "test_nfnet",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "eva02_tiny_patch14_224",
        "mobilenetv3_small_050",
    ],
)
def test_features_equal_timms_own_pipeline(name, tissue):
    encoder = load_encoder(f"timm:{name}", "random")
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(encoder.model.state_dict())
    patches = tissue(2, encoder.preprocessing.input_px)
    patches[1] = 255 - patches[1]
    expected = plain_features(model, patches)
    got = embed(encoder, patches, EmbedSettings(precision="fp32"))
    assert got.shape == (2, encoder.dim) == (2, model.num_features) or name == "mobilenetv3_small_050"
    assert (centred_cosine(got, expected) > 0.9999).all()
    assert encoder.preprocessing.interpolation == model.pretrained_cfg["interpolation"]


def test_bf16_attention_tells_patches_apart_as_fp32_does(tissue):
    encoder = load_encoder("timm:vit_tiny_patch16_224", "random")
    patches = np.concatenate([tissue(8, 96), 255 - tissue(8, 96, 1)])
    fp32, bf16 = (embed(encoder, patches, EmbedSettings(precision=p, input_px=96)) for p in ("fp32", "bf16"))
    assert (centred_cosine(bf16, fp32) > 0.99).all() and (bf16 != fp32).any()


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again, other = (load_encoder("timm:test_vit", "random", seed) for seed in (0, 0, 1))
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (torch.get_rng_state() == state).all() and one.weights == "random (seed 0)"


def test_position_embeddings_are_resampled_for_another_input_size(tissue):
    encoder, patches = load_encoder("timm:test_vit", "random"), tissue(2, 96)
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(encoder.model.state_dict())
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 96, 96)}
    got = embed(encoder, patches, EmbedSettings(precision="fp32", input_px=96))
    assert (centred_cosine(got, plain_features(model, patches)) > 0.9999).all()
    with pytest.raises(RequestError, match=r"--input-px 100: timm:test_vit cannot .*divisible by patch size .* 160 px"):
        Embedder(encoder, EmbedSettings(input_px=100))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet-50", "has no such model; close to it are .*timm:resnet50"),
        ("timm:test_vit.nonsense", r"has no such weights; close to it are timm:test_vit\.r160_in1k"),
        ("timm:hf-hub:UNI", "expected timm:hf-hub:OWNER/NAME"),
    ],
)
def test_an_unknown_model_is_refused_with_what_is_close(name, message):
    with pytest.raises(RequestError, match=f"--encoder {name}: .*{message}"):
        load_encoder(name)


def test_published_weights_of_timm_are_found_in_the_cache(hub, tmp_path):
    model = hub("timm/test_vit.r160_in1k")
    encoder = load_encoder("timm:test_vit.r160_in1k")
    assert (encoder.model.state_dict()["cls_token"] == model.state_dict()["cls_token"]).all()
    assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)  # timm's own configuration, not the repository's
