"""Pathology models by name, as their makers publish them: architecture, images, scale, pooling, weights and terms.

Where the code that others run disagrees about one, .docs/encoders.md says so. timm builds the networks, strictly from
the weights' tensors, so that a wrong argument is an error and never other features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torchvision
from timm.layers.mlp import SwiGLUPacked
from timm.models.swin_transformer import checkpoint_filter_fn as swin_in_todays_names
from timm.models.vision_transformer import checkpoint_filter_fn as vit_in_todays_names
from torch import nn

from features.encoders.encoder import Encoder, freeze, merge_norms
from features.encoders.hub import WEIGHT_FILES, hub_file
from features.encoders.parts import ClassAndMean, ConvStem
from features.encoders.preprocess import HALF, Preprocessing, Triple
from features.encoders.transformers_layout import in_timms_names
from features.encoders.weights import StateDict, read_weights, set_weights
from tiling.jobs.errors import RequestError

HUB = "timm:hf-hub:"  # begins the other name of a preset, that of its repository
Build = Callable[[], nn.Module]
Convert = Callable[[StateDict, nn.Module], StateDict]

_IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = HALF, HALF
_BIOPTIMUS: tuple[Triple, Triple] = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_LUNIT: tuple[Triple, Triple] = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
_ALL_SCALES = (0.25, 0.5, 1.0, 2.0)
_NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


def _vit(state: StateDict, model: Any, **resampling: Any) -> StateDict:
    converted: StateDict = vit_in_todays_names(dict(in_timms_names(state)), model, **resampling)
    return converted


def _swin(state: StateDict, model: nn.Module) -> StateDict:
    converted: StateDict = swin_in_todays_names(dict(state), model)
    return converted


def _resnet(state: StateDict, model: nn.Module) -> StateDict:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


@dataclass(frozen=True)
class Preset:
    """One published model."""

    page: str  # OWNER/NAME on the Hugging Face hub, or the address where its weights are found
    build: Build  # (B, 3, input_px, input_px) → (B, dim), or tokens for `pool`, without the weights
    dim: int
    licence: str
    mpp: tuple[float, ...] = (0.5,)  # µm per pixel of the images that it was trained on
    images: tuple[Triple, Triple] = _IMAGENET  # mean, std
    input_px: int = 224
    interpolation: str = "bicubic"
    pool: Callable[[nn.Module], nn.Module] | None = None
    files: tuple[str, ...] = WEIGHT_FILES[:2]
    convert: Convert = _vit  # the weights' names into those of the network built

    @property
    def on_the_hub(self) -> bool:
        return "." not in self.page.partition("/")[0]

    @property
    def preprocessing(self) -> Preprocessing:
        mean, std = self.images
        return Preprocessing(mean, std, self.input_px, min_px=1, interpolation=self.interpolation, mpp=self.mpp)


def _timm(architecture: str, any_size: bool = True, **arguments: Any) -> Build:
    """any_size: resample position embeddings for other images; those of 518 px are resampled once, as they are read."""
    if any_size:
        arguments["dynamic_img_size"] = True
    return partial(timm.create_model, architecture, num_classes=0, **{"img_size": 224, **arguments})


def _retccl() -> nn.Module:
    model: nn.Module = torchvision.models.resnet50()
    model.fc = nn.Identity()
    return model


_SWIGLU: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
_UNI = _timm("vit_large_patch16_224", init_values=1e-5)
_UNI2 = _timm(
    "vit_giant_patch14_224",
    patch_size=14,
    depth=24,
    num_heads=24,
    init_values=1e-5,
    embed_dim=1536,
    mlp_ratio=2.66667 * 2,
    no_embed_class=True,
    reg_tokens=8,
    **_SWIGLU,
)
_virchow = partial(_timm, "vit_huge_patch14_224", init_values=1e-5, mlp_ratio=5.3375, global_pool="", **_SWIGLU)
_H_OPTIMUS = _timm("vit_giant_patch14_reg4_dinov2")
_H0_MINI = _timm("vit_base_patch14_reg4_dinov2", mlp_ratio=5.33334, global_pool="", **_SWIGLU)
_GIGAPATH = _timm("vit_giant_patch14_dinov2", patch_size=16, mlp_ratio=5.33334)
_PHIKON = _timm("vit_base_patch16_224", norm_layer=partial(nn.LayerNorm, eps=1e-12))
_MIDNIGHT = _timm("vit_giant_patch14_dinov2", any_size=False, global_pool="")
_CTRANSPATH = _timm("swin_tiny_patch4_window7_224", any_size=False, embed_layer=ConvStem)


def _kaiko(architecture: str, dim: int, any_size: bool = True) -> Preset:
    build = _timm(architecture, any_size)
    page = f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms"
    return Preset(page, build, dim, "non-commercial", _ALL_SCALES, _HALF, interpolation="bilinear")


def _lunit(architecture: str) -> Preset:
    page = f"1aurent/{architecture}.lunit_dino"
    return Preset(page, _timm(architecture), 384, "non-commercial", (0.25, 0.5), _LUNIT)


PRESETS: dict[str, Preset] = {
    "uni": Preset("MahmoodLab/UNI", _UNI, 1024, _NON_COMMERCIAL, interpolation="bilinear"),
    "uni2-h": Preset("MahmoodLab/UNI2-h", _UNI2, 1536, _NON_COMMERCIAL, interpolation="bilinear"),
    "virchow": Preset("paige-ai/Virchow", _virchow(), 2560, "Apache-2.0", pool=ClassAndMean),
    "virchow2": Preset(
        "paige-ai/Virchow2", _virchow(reg_tokens=4), 2560, _NON_COMMERCIAL, _ALL_SCALES, pool=ClassAndMean
    ),
    "h-optimus-0": Preset("bioptimus/H-optimus-0", _H_OPTIMUS, 1536, "Apache-2.0", images=_BIOPTIMUS),
    "h-optimus-1": Preset("bioptimus/H-optimus-1", _H_OPTIMUS, 1536, _NON_COMMERCIAL, images=_BIOPTIMUS),
    "h0-mini": Preset("bioptimus/H0-mini", _H0_MINI, 1536, _NON_COMMERCIAL, images=_BIOPTIMUS, pool=ClassAndMean),
    "prov-gigapath": Preset("prov-gigapath/prov-gigapath", _GIGAPATH, 1536, "Apache-2.0 with conditions"),
    "phikon": Preset("owkin/phikon", _PHIKON, 768, "non-commercial (Owkin)", interpolation="bilinear"),
    "phikon-v2": Preset("owkin/phikon-v2", _UNI, 1024, "non-commercial (Owkin)", interpolation="bilinear"),
    "midnight-12k": Preset(
        "kaiko-ai/midnight",
        _MIDNIGHT,
        3072,
        "MIT",
        _ALL_SCALES,
        _HALF,
        interpolation="bilinear",
        pool=ClassAndMean,
        convert=partial(_vit, antialias=False),
    ),
    "kaiko-s16": _kaiko("vit_small_patch16_224", 384),
    "kaiko-s8": _kaiko("vit_small_patch8_224", 384),
    "kaiko-b16": _kaiko("vit_base_patch16_224", 768),
    "kaiko-b8": _kaiko("vit_base_patch8_224", 768),
    "kaiko-l14": _kaiko("vit_large_patch14_reg4_dinov2", 1024, any_size=False),
    "gpfm": Preset("majiabo/GPFM", _timm("vit_large_patch14_dinov2"), 1024, "see its page", files=("GPFM.pth",)),
    "lunit-dino-s16": _lunit("vit_small_patch16_224"),
    "lunit-dino-s8": _lunit("vit_small_patch8_224"),
    "ctranspath": Preset(
        "github.com/Xiyue-Wang/TransPath",
        _CTRANSPATH,
        768,
        "GPL-3.0, non-commercial",
        (1.0,),
        interpolation="bilinear",
        convert=_swin,
    ),
    "retccl": Preset(
        "github.com/Xiyue-Wang/RetCCL",
        _retccl,
        2048,
        "GPL-3.0, non-commercial",
        (1.0,),
        input_px=256,
        interpolation="bilinear",
        convert=_resnet,
    ),
}
_BY_PAGE = {preset.page.lower(): preset for preset in PRESETS.values()}


def find_preset(name: str) -> Preset | None:
    """The preset of this name, or of the repository in timm:hf-hub:OWNER/NAME[@REVISION]."""
    repository = name.removeprefix(HUB) if name.startswith(HUB) else ""
    return PRESETS.get(name) or _BY_PAGE.get(repository.partition("@")[0].lower())


def load_preset(name: str, preset: Preset, weights: str, seed: int) -> Encoder:
    """The encoder of a preset that goes by `name`. Raises RequestError for weights that cannot be had or do not fit."""
    model = preset.build()

    def converted() -> StateDict:
        file = _published(name, preset) if weights == "default" else Path(weights)
        return preset.convert(read_weights(file), model)

    set_weights(
        model, "random" if weights == "random" else "default", seed, converted, ("head.",), f"{name}: {weights}"
    )
    if preset.pool:
        model = preset.pool(model)
    return merge_norms(freeze(name, model, weights, seed, dim=preset.dim, preprocessing=preset.preprocessing))


def _published(name: str, preset: Preset) -> Path:
    if preset.on_the_hub:
        return hub_file(name, preset.page, preset.files, name.partition("@")[2], preset.licence)
    raise RequestError(
        f"--encoder {name}: its weights ({preset.licence}) are found by way of https://{preset.page}; "
        "download them there and name the file with --weights FILE"
    )
