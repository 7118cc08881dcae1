"""torchvision's ImageNet networks: pooled features before the classifier.

The weights are pinned to IMAGENET1K_V1 throughout. For most networks there is nothing else. For ResNet and its
kin it is what the pathology literature means by their names, and the recipe behind V2's better ImageNet accuracy
(label smoothing, mixup, cutmix) makes penultimate features transfer less well. For ViT the others (SWAG) forbid
commercial use. Normalisation, interpolation and size come from the weights' own transforms; a patch is resized
whole to that size, where torchvision resizes to a larger one and crops: no tissue is cut off.

Convolutional networks take a patch at its own size, so that its scale in µm per pixel stays what it is. ViT takes
224 px only. Swin is given 224 px (V2 256 px); with `--input-px` it takes other sizes too, and pads windows that
the image does not fill, so that multiples of its own size come nearest to what it has learned.

VGG gives the 512-d global average of its last convolution block, as `include_top=False, pooling="avg"` does in
Keras: it takes any input size, where the 4,096-d layer is bound to a 7×7 grid and to ImageNet's classes.
MobileNet v3 likewise gives the average before its two dense layers. ViT gives the class token after the last
norm, ConvNeXt and Swin the average with their last norm, as their classifiers see it.
GoogLeNet and Inception v3 were trained on mean = std = 0.5; torchvision gets there with `transform_input`.
`resnet50-trunc` ends after the third block: the 1,024 features that CLAM uses.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from features.encoders.encoder import Encoder, freeze, merge_norms
from features.encoders.preprocess import HALF, Preprocessing
from features.encoders.weights import StateDict, set_weights
from tiling.jobs.errors import RequestError

_DENSENET_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_RANGE = 0.2, 1000.0  # of the standard deviation of features: float16 holds them well


@dataclass(frozen=True)
class Backbone:
    """How one network of torchvision is built and cut."""

    build: Callable[..., Any]
    weights: WeightsEnum
    dim: int
    cut: dict[str, Callable[[], nn.Module]]  # submodule → what takes its place
    heads: tuple[str, ...]  # prefixes of the keys of a published file that the cut network does not have
    min_px: int = 32
    fixed: bool = False  # given images of its own size unless told
    half: bool = False  # mean = std = 0.5, and not what the transforms say


def _backbone(build: Callable[..., Any], weights: WeightsEnum, dim: int, head: str, **more: Any) -> Backbone:
    """A network whose features are what its classifier, the submodule `head`, would get."""
    return Backbone(build, weights, dim, {head: nn.Identity}, (f"{head}.",), **more)


def _pooled(build: Callable[..., Any], weights: WeightsEnum, dim: int) -> Backbone:
    """A network with a dense part between the last convolution and the classifier: the average before it."""
    cut: dict[str, Callable[[], nn.Module]] = {"avgpool": partial(nn.AdaptiveAvgPool2d, 1), "classifier": nn.Identity}
    return Backbone(build, weights, dim, cut, ("classifier.",))


_no_init = {"init_weights": False}  # slow, and overwritten in any case
_no_aux = {**_no_init, "aux_logits": False}

BACKBONES: dict[str, Backbone] = {
    "resnet18": _backbone(zoo.resnet18, zoo.ResNet18_Weights.IMAGENET1K_V1, 512, "fc"),
    "resnet34": _backbone(zoo.resnet34, zoo.ResNet34_Weights.IMAGENET1K_V1, 512, "fc"),
    "resnet50": _backbone(zoo.resnet50, zoo.ResNet50_Weights.IMAGENET1K_V1, 2048, "fc"),
    "resnet50-trunc": Backbone(
        zoo.resnet50,
        zoo.ResNet50_Weights.IMAGENET1K_V1,
        1024,
        {"layer4": nn.Identity, "fc": nn.Identity},
        ("layer4.", "fc."),
    ),
    "resnet101": _backbone(zoo.resnet101, zoo.ResNet101_Weights.IMAGENET1K_V1, 2048, "fc"),
    "resnet152": _backbone(zoo.resnet152, zoo.ResNet152_Weights.IMAGENET1K_V1, 2048, "fc"),
    "wide-resnet50": _backbone(zoo.wide_resnet50_2, zoo.Wide_ResNet50_2_Weights.IMAGENET1K_V1, 2048, "fc"),
    "wide-resnet101": _backbone(zoo.wide_resnet101_2, zoo.Wide_ResNet101_2_Weights.IMAGENET1K_V1, 2048, "fc"),
    "resnext50": _backbone(zoo.resnext50_32x4d, zoo.ResNeXt50_32X4D_Weights.IMAGENET1K_V1, 2048, "fc"),
    "resnext101": _backbone(zoo.resnext101_32x8d, zoo.ResNeXt101_32X8D_Weights.IMAGENET1K_V1, 2048, "fc"),
    "vgg16": _pooled(partial(zoo.vgg16, **_no_init), zoo.VGG16_Weights.IMAGENET1K_V1, 512),
    "vgg19": _pooled(partial(zoo.vgg19, **_no_init), zoo.VGG19_Weights.IMAGENET1K_V1, 512),
    "googlenet": Backbone(
        partial(zoo.googlenet, **_no_aux),
        zoo.GoogLeNet_Weights.IMAGENET1K_V1,
        1024,
        {"fc": nn.Identity},
        ("fc.", "aux1.", "aux2."),
        min_px=15,
        half=True,
    ),
    "inception-v3": Backbone(
        partial(zoo.inception_v3, **_no_aux),
        zoo.Inception_V3_Weights.IMAGENET1K_V1,
        2048,
        {"fc": nn.Identity},
        ("fc.", "AuxLogits."),
        min_px=75,
        half=True,
    ),
    "densenet121": _backbone(zoo.densenet121, zoo.DenseNet121_Weights.IMAGENET1K_V1, 1024, "classifier"),
    "mobilenet-v2": _backbone(zoo.mobilenet_v2, zoo.MobileNet_V2_Weights.IMAGENET1K_V1, 1280, "classifier"),
    "mobilenet-v3-small": _pooled(zoo.mobilenet_v3_small, zoo.MobileNet_V3_Small_Weights.IMAGENET1K_V1, 576),
    "mobilenet-v3-large": _pooled(zoo.mobilenet_v3_large, zoo.MobileNet_V3_Large_Weights.IMAGENET1K_V1, 960),
    "efficientnet-b0": _backbone(zoo.efficientnet_b0, zoo.EfficientNet_B0_Weights.IMAGENET1K_V1, 1280, "classifier"),
    "efficientnet-v2-s": _backbone(
        zoo.efficientnet_v2_s, zoo.EfficientNet_V2_S_Weights.IMAGENET1K_V1, 1280, "classifier", min_px=33
    ),
    "convnext-tiny": _backbone(zoo.convnext_tiny, zoo.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, 768, "classifier.2"),
    "convnext-small": _backbone(zoo.convnext_small, zoo.ConvNeXt_Small_Weights.IMAGENET1K_V1, 768, "classifier.2"),
    "convnext-base": _backbone(zoo.convnext_base, zoo.ConvNeXt_Base_Weights.IMAGENET1K_V1, 1024, "classifier.2"),
    "vit-b16": _backbone(zoo.vit_b_16, zoo.ViT_B_16_Weights.IMAGENET1K_V1, 768, "heads", fixed=True),
    "vit-b32": _backbone(zoo.vit_b_32, zoo.ViT_B_32_Weights.IMAGENET1K_V1, 768, "heads", fixed=True),
    "vit-l16": _backbone(zoo.vit_l_16, zoo.ViT_L_16_Weights.IMAGENET1K_V1, 1024, "heads", fixed=True),
    "swin-t": _backbone(zoo.swin_t, zoo.Swin_T_Weights.IMAGENET1K_V1, 768, "head", fixed=True),
    "swin-v2-t": _backbone(zoo.swin_v2_t, zoo.Swin_V2_T_Weights.IMAGENET1K_V1, 768, "head", fixed=True),
}


def load_torchvision(name: str, weights: str, seed: int) -> Encoder:
    """One of `BACKBONES`. Raises RequestError for weights that cannot be had or do not fit."""
    backbone = BACKBONES[name]
    model = _cut_model(backbone)
    set_weights(model, weights, seed, partial(_download, backbone.weights), backbone.heads, f"{name}: {weights}")
    if weights == "random":
        _keep_in_range(model)
    transforms = backbone.weights.transforms()
    preprocessing = Preprocessing(
        mean=HALF if backbone.half else tuple(transforms.mean),
        std=HALF if backbone.half else tuple(transforms.std),
        input_px=transforms.crop_size[0] if backbone.fixed else 0,
        min_px=backbone.min_px,
        interpolation=transforms.interpolation.value,
    )
    return merge_norms(freeze(name, model, weights, seed, dim=backbone.dim, preprocessing=preprocessing))


def _cut_model(backbone: Backbone) -> nn.Module:
    model: nn.Module = backbone.build()
    for path, replacement in backbone.cut.items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement())
    if isinstance(model, zoo.DenseNet):
        model.register_load_state_dict_pre_hook(_rename_old_densenet)
    return model


def _rename_old_densenet(model: nn.Module, state: dict[str, Any], *_: object) -> None:
    """The published weights are older than today's names: `denselayer1.norm.1` is `denselayer1.norm1` now."""
    for key in list(state):
        state[_DENSENET_OLD_KEY.sub(r"\1\2", key)] = state.pop(key)


@torch.inference_mode()
def _keep_in_range(model: nn.Module) -> None:
    """Where random weights lead out of float16's range, let each batch norm take out the scale of what it gets.

    One power of two a layer, measured on noise: the same on every processor.
    """

    def take_out(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
        norm.running_var.fill_(2.0 ** round(math.log2(float(inputs[0].var()))))

    noise = 4 * torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) - 2
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms or _RANGE[0] < float(model(noise).std()) < _RANGE[1]:
        return
    hooks = [norm.register_forward_pre_hook(take_out) for norm in norms]
    model(noise)
    for hook in hooks:
        hook.remove()


def _download(weights: WeightsEnum) -> StateDict:
    try:
        state: StateDict = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise RequestError(
            f"cannot download {weights.url} ({error}); on a machine without internet copy "
            f"{Path(weights.url).name} here and give it with --weights FILE, "
            "or use --encoder efficientnet-lite0, whose weights are installed"
        ) from error
    return state
