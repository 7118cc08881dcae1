"""The frozen encoder, the one type that every module of the zoo returns, and how a network becomes one."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from features.encoders.int8 import Int8Network
from features.encoders.norms import has_batch_norms
from features.encoders.preprocess import Preprocessing
from features.encoders.weights import state_sha256
from tiling.jobs.errors import RequestError


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen network in eval mode: (B, 3, P, P) float32, preprocessed → (B, dim)."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    dim: int
    weights: str  # "default", "random (seed 0)" or the name of the weights file
    weights_sha256: str  # see `state_sha256`
    unmerged: nn.Module | None = None  # a copy with its batch norms as they were trained; None where there is none
    int8: Int8Network | None = None  # the same network in 8-bit integers, for --precision int8

    def with_preprocessing(self, **changes: Any) -> "Encoder":
        """The same network behind other preprocessing; changes: fields of `Preprocessing`."""
        return replace(self, preprocessing=replace(self.preprocessing, **changes))

    def in_int8(self, network: Int8Network) -> "Encoder":
        """The same with its network in 8-bit integers. Raises RequestError where that was made of another one."""
        if network.weights_sha256 != self.weights_sha256:
            raise RequestError(
                f"--precision int8: the calibrated network was made of other weights ({network.weights_sha256[:12]}) "
                f"than {self.name}, {self.weights} ({self.weights_sha256[:12]}); "
                "use the encoder that it was made of, or another --out"
            )
        return replace(self, int8=network)

    def require_input_px(self, side: int) -> None:
        """Raises RequestError where the network cannot take images of this side: the network itself is asked."""
        least, usual = self.preprocessing.min_px, self.preprocessing.input_px
        own = f"leave --input-px out to give it {f'{usual} px' if usual else 'patches as they are'}"
        if side < least:
            raise RequestError(f"--input-px {side}: {self.name} needs at least {least} px; {own}")
        device = next(self.model.parameters(), torch.empty(0)).device
        try:
            with torch.inference_mode():
                self.model(torch.zeros(1, 3, side, side, device=device))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RequestError(f"--input-px {side}: {self.name} cannot take that size ({reason}); {own}") from error


def freeze(name: str, model: nn.Module, weights: str, seed: int, *, dim: int, preprocessing: Preprocessing) -> Encoder:
    """The encoder made of a network that has its weights; `weights` and `seed` say where they come from."""
    sha256 = state_sha256(model.state_dict())
    model = model.eval().requires_grad_(False)
    unmerged = copy.deepcopy(model) if has_batch_norms(model) else None
    shown = {"default": "default", "random": f"random (seed {seed})"}.get(weights, Path(weights).name)
    return Encoder(name, model, preprocessing, dim, shown, sha256, unmerged)


def merge_norms(encoder: Encoder) -> Encoder:
    """Each batch norm merged into the convolution before it: the same numbers, 1.4 times as fast on a CPU.

    Only for networks whose convolutions are each followed by the batch norm that is defined next.
    """
    if encoder.unmerged is None:
        return encoder
    model = copy.deepcopy(encoder.model)
    for parent in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # timm's norm has its activation
    return replace(encoder, model=model)
