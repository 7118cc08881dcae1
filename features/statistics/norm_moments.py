"""What a network's batch norms see: the first two moments of each channel of their inputs.

The network carries the same two of its training, its running mean and variance, so the distance of a slide from
ImageNet can be told without any of ImageNet's images (as in Li et al., "Adaptive Batch Normalization", 2018).
"""

import copy
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.encoders import Encoder
from features.encoders.norms import norm_layers


@dataclass(frozen=True)
class NormMoments:
    """Sums over patches of each batch norm's input: its mean and mean square over a patch, layer after layer.

    Two of the same network add up, in float64, to those of all their patches.
    """

    layers: dict[str, int]  # channels by name, in the order in which they are defined; empty without batch norms
    patches: int
    sums: NDArray[np.float64]  # (ΣC,)
    squares: NDArray[np.float64]  # (ΣC,)

    def __add__(self, other: "NormMoments") -> "NormMoments":
        assert self.layers == other.layers
        patches = self.patches + other.patches
        return NormMoments(self.layers, patches, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(ΣC,); NaN where there is no patch."""
        return self.sums / self.patches if self.patches else np.full(self.sums.shape, np.nan)

    @property
    def variance(self) -> NDArray[np.float64]:
        """(ΣC,); NaN where there is no patch."""
        if not self.patches:
            return np.full(self.sums.shape, np.nan)
        return np.maximum(self.squares / self.patches - self.mean**2, 0)


def no_moments(layers: dict[str, int]) -> NormMoments:
    channels = sum(layers.values())
    return NormMoments(layers, 0, np.zeros(channels), np.zeros(channels))


def norm_moments(
    encoder: Encoder, batches: Iterable[Tensor], device: torch.device, *, renormalise: bool = False
) -> NormMoments:
    """Of batches of images (n, 3, P, P) uint8; see `NormInputs`."""
    inputs = NormInputs(encoder, device, renormalise=renormalise)
    total = no_moments(inputs.layers)
    with torch.inference_mode():
        for images in batches:
            total = total + moments_of(
                inputs.layers, inputs(encoder.preprocessing.apply(images.to(device))).cpu().numpy()
            )
    return total


def moments_of(layers: dict[str, int], rows: NDArray[np.float32]) -> NormMoments:
    """Of patches (n, 2·ΣC), as `NormInputs` gives them."""
    sums, squares = rows.sum(0, np.float64).reshape(2, -1)
    return NormMoments(layers, len(rows), sums, squares)


class NormInputs:
    """A network (n, 3, P, P) → (n, 2·ΣC): means, then mean squares, of what each channel of its batch norms gets.

    It is a copy on a device, its batch norms not merged into convolutions. Threads may share one, unless it
    renormalises: then each batch norm gets the moments of the batch that it sees in the place of those of its training,
    as in training mode, and what lies behind it sees the batch so normalised.

    model: that copy; None where the encoder has no batch norms.
    """

    def __init__(self, encoder: Encoder, device: torch.device, *, renormalise: bool = False) -> None:
        self.layers = norm_layers(encoder.unmerged)
        self._renormalise = renormalise
        self._seen = threading.local()
        self.model = copy.deepcopy(encoder.unmerged)
        if self.model is not None:
            self.model.to(device).to(memory_format=torch.channels_last)
            for name in self.layers:
                self.model.get_submodule(name).register_forward_pre_hook(self._hook(name))

    def __call__(self, images: Tensor) -> Tensor:
        """images: float32, preprocessed, on the device. NaN for a batch norm that sees nothing."""
        self._seen.moments = {
            n: torch.full((len(images), 2, c), torch.nan, device=images.device) for n, c in self.layers.items()
        }
        if self.model is not None:
            self.model(images)
        moments: Mapping[str, Tensor] = self._seen.moments
        return torch.cat([*moments.values(), torch.empty(len(images), 2, 0, device=images.device)], 2).flatten(1)

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].to(torch.float32, copy=True)
            mean, square = x.mean((2, 3)), x.square_().mean((2, 3))  # n, C
            self._seen.moments[name] = torch.stack([mean, square], 1)
            if self._renormalise:
                module.get_buffer("running_mean").copy_(mean.mean(0))
                module.get_buffer("running_var").copy_((square.mean(0) - mean.mean(0).square()).clamp_min(0))

        return see
