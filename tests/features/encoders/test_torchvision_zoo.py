"""torchvision's networks against the plain way: one PIL image at a time, the weights' own transforms, a hook."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from PIL import Image
from torch import nn
from torchvision.models import WeightsEnum

from features.config import EmbedSettings
from features.embed.pipe import embed
from features.encoders import load_encoder
from features.encoders.torchvision_zoo import BACKBONES

quiet = {"init_weights": False}
PLAIN = {  # name: its builder, its weights, and the module whose input or output are the features
    "resnet18": (zoo.resnet18, zoo.ResNet18_Weights, "out", "avgpool"),
    "resnet34": (zoo.resnet34, zoo.ResNet34_Weights, "out", "avgpool"),
    "resnet50": (zoo.resnet50, zoo.ResNet50_Weights, "out", "avgpool"),
    "resnet50-trunc": (zoo.resnet50, zoo.ResNet50_Weights, "out", "layer3"),
    "resnet101": (zoo.resnet101, zoo.ResNet101_Weights, "out", "avgpool"),
    "resnet152": (zoo.resnet152, zoo.ResNet152_Weights, "out", "avgpool"),
    "wide-resnet50": (zoo.wide_resnet50_2, zoo.Wide_ResNet50_2_Weights, "out", "avgpool"),
    "wide-resnet101": (zoo.wide_resnet101_2, zoo.Wide_ResNet101_2_Weights, "out", "avgpool"),
    "resnext50": (zoo.resnext50_32x4d, zoo.ResNeXt50_32X4D_Weights, "out", "avgpool"),
    "resnext101": (zoo.resnext101_32x8d, zoo.ResNeXt101_32X8D_Weights, "out", "avgpool"),
    "vgg16": (zoo.vgg16, zoo.VGG16_Weights, "out", "features"),
    "vgg19": (zoo.vgg19, zoo.VGG19_Weights, "out", "features"),
    "googlenet": (partial(zoo.googlenet, **quiet), zoo.GoogLeNet_Weights, "out", "avgpool"),
    "inception-v3": (partial(zoo.inception_v3, **quiet), zoo.Inception_V3_Weights, "out", "avgpool"),
    "densenet121": (zoo.densenet121, zoo.DenseNet121_Weights, "in", "classifier"),
    "mobilenet-v2": (zoo.mobilenet_v2, zoo.MobileNet_V2_Weights, "in", "classifier"),
    "mobilenet-v3-small": (zoo.mobilenet_v3_small, zoo.MobileNet_V3_Small_Weights, "out", "avgpool"),
    "mobilenet-v3-large": (zoo.mobilenet_v3_large, zoo.MobileNet_V3_Large_Weights, "out", "avgpool"),
    "efficientnet-b0": (zoo.efficientnet_b0, zoo.EfficientNet_B0_Weights, "in", "classifier"),
    "efficientnet-v2-s": (zoo.efficientnet_v2_s, zoo.EfficientNet_V2_S_Weights, "in", "classifier"),
    "convnext-tiny": (zoo.convnext_tiny, zoo.ConvNeXt_Tiny_Weights, "in", "classifier.2"),
    "convnext-small": (zoo.convnext_small, zoo.ConvNeXt_Small_Weights, "in", "classifier.2"),
    "convnext-base": (zoo.convnext_base, zoo.ConvNeXt_Base_Weights, "in", "classifier.2"),
    "vit-b16": (zoo.vit_b_16, zoo.ViT_B_16_Weights, "in", "heads"),
    "vit-b32": (zoo.vit_b_32, zoo.ViT_B_32_Weights, "in", "heads"),
    "vit-l16": (zoo.vit_l_16, zoo.ViT_L_16_Weights, "in", "heads"),
    "swin-t": (zoo.swin_t, zoo.Swin_T_Weights, "in", "head"),
    "swin-v2-t": (zoo.swin_v2_t, zoo.Swin_V2_T_Weights, "in", "head"),
}
SHA256 = {  # of random weights, seed 0: features that were made with them can be made again
    "resnet18": "13305e427c26ad41",
    "resnet50": "edf0471e7d056957",
    "vgg16": "887d297d79268a7a",
    "googlenet": "7a4b4a3bf3ace175",
    "inception-v3": "9b27f220648ededb",
}


@pytest.fixture(autouse=True)
def quick_building(monkeypatch):
    """No numbers drawn that are overwritten, no weights copied, and ViTs of three of their many equal blocks."""
    vit = zoo.vision_transformer._vision_transformer
    drawing = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_")
    load = nn.Module.load_state_dict
    with monkeypatch.context() as patch:
        for name in drawing:
            patch.setattr(nn.init, name, lambda tensor, *a, **k: tensor)
        patch.setattr(zoo.vision_transformer, "_vision_transformer", lambda **of: vit(**of | {"num_layers": 3}))
        patch.setattr(nn.Module, "load_state_dict", lambda self, state, *a, **k: load(self, state, assign=True))
        yield patch


def trained_like(model, seed=0):
    """Random weights and batch-norm statistics of every kind: what a folded norm must reproduce."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1_000_003, generator=generator)

    def draw(tensor, low, high):
        start = int(torch.randint(len(noise) // 2, (), generator=generator))
        for part in tensor.view(-1).split(len(noise) // 2):
            part.copy_(noise[start : start + len(part)]).mul_(high - low).add_(low)

    with torch.no_grad():
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            for name, tensor in own.items():
                bound = 1.0 if tensor.ndim < 2 else (3 / tensor[0].numel()) ** 0.5
                if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                    draw(tensor, *((0.6, 1.0) if name == "weight" else (-0.2, 0.2)))
                elif name == "layer_scale":
                    draw(tensor, 0.2, 0.4)
                elif isinstance(module, nn.Conv2d) and name == "weight":
                    draw(tensor, -(2**0.5) * bound, 2**0.5 * bound)
                elif name == "in_proj_weight" or (isinstance(module, nn.Linear) and name == "weight"):
                    draw(tensor, -bound, bound)
                elif name != "logit_scale":  # biases, tokens, positions
                    draw(tensor, -0.2, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                draw(module.running_mean, -0.3, 0.3)
                draw(module.running_var, 0.5, 1.5)
    return model.state_dict()


@pytest.fixture
def published(monkeypatch):
    """published(name): a full checkpoint as torchvision would download it, with classifier and auxiliary heads."""

    def publish(name, rename=lambda key: key):
        state = {rename(key): value for key, value in trained_like(PLAIN[name][0]()).items()}
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: dict(state))
        return state

    return publish


def plain_features(name, patches, **sizes):
    """One image at a time through the whole network of torchvision, features taken where they are pooled."""
    builder, enum, end, path = PLAIN[name]
    model = builder(weights=enum.IMAGENET1K_V1).eval()  # the builder itself decides about transform_input
    transforms, caught = enum.IMAGENET1K_V1.transforms(**sizes), []

    def catch(module, inputs, output):
        features = output if end == "out" else inputs[0]
        caught.append(features.mean((2, 3)) if features.ndim == 4 else features)

    model.get_submodule(path).register_forward_hook(catch)
    with torch.inference_mode():
        for patch in patches:
            model(transforms(Image.fromarray(patch)).unsqueeze(0))
    return torch.cat(caught).numpy()


def centred_cosine(a, b):
    """Cosine of each row of a with that row of b, the mean row of b subtracted from both."""
    a, b = a - b.mean(0), b - b.mean(0)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_every_network_is_compared():
    assert set(PLAIN) == set(BACKBONES)


@pytest.mark.parametrize("name", PLAIN)
def test_features_equal_torchvisions_own_pipeline(name, published, tissue, quick_building):
    """Patches that have the model's size already, or a small one where it takes any: neither resized nor cropped."""
    published(name)
    quick_building.setattr("features.encoders.encoder.state_sha256", lambda state: "not asked for here")
    side = PLAIN[name][1].IMAGENET1K_V1.transforms().crop_size[0] if BACKBONES[name].fixed else 96
    patches = tissue(2, side)
    patches[1] = 255 - patches[1]
    expected = plain_features(name, patches, resize_size=side, crop_size=side)
    encoder = load_encoder(name)
    got = embed(encoder, patches, EmbedSettings(precision="fp32", batch_size=2))
    assert got.shape == (2, encoder.dim) and encoder.preprocessing.input_px in (0, side)
    assert (centred_cosine(got, expected) > 0.9999).all()
    assert np.abs(got - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("name", ["resnet18", "swin-t"])
def test_bf16_tells_patches_apart_as_fp32_does(name, published, tissue):
    published(name)
    patches = np.concatenate([tissue(8, 96), 255 - tissue(8, 96, 1)])
    encoder = load_encoder(name)
    fp32, bf16 = (embed(encoder, patches, EmbedSettings(precision=p, input_px=64)) for p in ("fp32", "bf16"))
    assert (centred_cosine(bf16, fp32) > 0.99).all() and (bf16 != fp32).any()


@pytest.mark.parametrize("name", ["googlenet", "inception-v3"])
def test_a_weights_file_is_normalised_as_the_published_weights_are(name, published, tissue, tmp_path, quick_building):
    torch.save(published(name), tmp_path / "own.pth")
    default, own = load_encoder(name), load_encoder(name, str(tmp_path / "own.pth"))
    patches = tissue(2, 96)
    fp32 = EmbedSettings(precision="fp32")
    assert (embed(own, patches, fp32) == embed(default, patches, fp32)).all()
    assert (own.weights, own.weights_sha256) == ("own.pth", default.weights_sha256)
    quick_building.undo()
    assert own.preprocessing == default.preprocessing == load_encoder(name, "random").preprocessing


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("densenet121", {".norm1.": ".norm.1.", ".norm2.": ".norm.2.", ".conv1.": ".conv.1.", ".conv2.": ".conv.2."}),
        ("vit-b32", {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}),
    ],
)
def test_the_names_of_older_versions_in_published_weights_are_read(name, renamed, published):
    """The files of DenseNet and ViT on torchvision's server are older than its present modules."""

    def rename(key):
        for present, past in renamed.items():
            key = key.replace(present, past)
        return key

    present, today = published(name), load_encoder(name).weights_sha256
    assert set(published(name, rename)) != set(present)
    assert load_encoder(name).weights_sha256 == today


def test_a_resized_patch_is_seen_as_pil_would_resize_it(published, tissue):
    published("resnet18")
    patches = tissue(3, 256)
    plain = plain_features("resnet18", patches, resize_size=112, crop_size=112)
    got = embed(load_encoder("resnet18"), patches, EmbedSettings(precision="fp32", input_px=112))
    assert (centred_cosine(got, plain) > 0.999).all()


def test_swin_takes_the_size_that_is_asked_for(published, tissue):
    published("swin-t")
    patches = tissue(2, 128)
    plain = plain_features("swin-t", patches, resize_size=128, crop_size=128)
    got = embed(load_encoder("swin-t"), patches, EmbedSettings(precision="fp32", input_px=128))
    assert (centred_cosine(got, plain) > 0.9999).all()


def test_the_truncated_resnet_is_the_beginning_of_the_whole_one(published):
    published("resnet50")
    whole, cut = load_encoder("resnet50").model.state_dict(), load_encoder("resnet50-trunc").model.state_dict()
    assert cut and all((whole[key] == value).all() for key, value in cut.items())
    assert set(whole) - set(cut) == {key for key in whole if key.startswith("layer4.")}


@pytest.mark.parametrize("name", SHA256)
def test_random_weights_stay_what_they_were(name, quick_building):
    quick_building.undo()
    assert load_encoder(name, "random").weights_sha256.startswith(SHA256[name])
