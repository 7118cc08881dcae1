"""Pixels as an encoder takes them: resized and normalised as in its training."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from features.encoders.encoder import Encoder


def prepare(encoder: Encoder, images: Tensor, side: int) -> Tensor:
    """(n, 3, P, P) uint8 → (n, 3, side, side) float32 as the network takes it: resized, (value / 255 - mean) / std."""
    if side != images.shape[-1]:
        how = InterpolationMode(encoder.interpolation)
        images = transform.resize(images, [side, side], how, antialias=True)
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    return images.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
