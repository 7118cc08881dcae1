"""Pixels as a network takes them: resized and normalised as in its training."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

Triple = tuple[float, float, float]
RULES = 1  # version of what `apply` makes of pixels; whoever changes that raises it: features are then not mixed
HALF: Triple = (0.5, 0.5, 0.5)  # mean and std of networks that were trained on -1..1


@dataclass(frozen=True)
class Preprocessing:
    """The images that a network was trained on: their normalisation, size and scale."""

    mean: Triple  # of RGB in 0..1
    std: Triple
    input_px: int = 0  # side of the square image that it is given; 0: the patch's own, from `min_px` on
    min_px: int = 32
    interpolation: str = "bilinear"  # or "bicubic", for patches that have to be resized
    mpp: tuple[float, ...] = ()  # the scales, µm per pixel of the image that it is given; empty: it is held to none

    @property
    def normalisation(self) -> str:
        """As feature files keep it."""
        return f"mean={self.mean} std={self.std}"

    @property
    def resizing(self) -> str:
        """As feature files keep it."""
        return f"{self.interpolation}, rules {RULES}"

    def apply(self, images: Tensor, side: int = 0) -> Tensor:
        """(n, 3, P, P) uint8 → (n, 3, side, side) float32: resized, then (value / 255 - mean) / std.

        side: in pixels; 0 for `input_px`, or P where that is 0 too.
        """
        side = side or self.input_px or images.shape[-1]
        if side != images.shape[-1]:
            images = transform.resize(images, [side, side], InterpolationMode(self.interpolation), antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.mean, self.std))
        return images.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
