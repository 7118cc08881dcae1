"""Parts of published networks that timm does not build."""

from typing import Any

import torch
from torch import Tensor, nn


class ClassAndMean(nn.Module):
    """A vision transformer that returns tokens (B, N, D) → class token and mean patch token, (B, 2·D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model(images)  # B, N, D: class token, registers, patches
        return torch.cat([tokens[:, 0], tokens[:, self.model.num_prefix_tokens :].mean(1)], 1)


class ConvStem(nn.Module):
    """Three convolutions in the place of a Swin transformer's patch embedding (Wang et al., CTransPath, 2022)."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, norm_layer: Any, **_: Any
    ) -> None:
        super().__init__()
        assert patch_size == 4
        self.side, self.grid_size = img_size, (img_size // 4, img_size // 4)
        narrow, wide = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, P, P) → (B, P/4, P/4, D)."""
        if images.shape[-1] != self.side:
            raise ValueError(f"it takes images of {self.side} px alone")
        embedded: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return embedded
