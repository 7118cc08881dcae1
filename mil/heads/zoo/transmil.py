"""TransMIL: Shao et al., "TransMIL: transformer based correlated multiple instance learning for whole slide image
classification", NeurIPS 2021.

The embedded patches, a class token before them, go through two layers of self-attention in the approximation of Xiong
et al., "Nyströmformer", AAAI 2021; between the two, convolutions over the patches laid out as a square (PPEG) stand for
their places. The square is filled row by row in the order of the bag and its end with the first patches again, so this
is the one head for which the order of patches matters. Feature files keep the order of the rows of the slide.

Attention is what the class token takes from each patch in the second layer, mean over heads, negative values (of the
approximation) set to 0. `patch_logits` are the classifier applied to each patch's own token.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.bags import Bags
from mil.heads.head import Head, HeadShape, MilOutput, patch_embedding
from tiling.jobs.errors import RequestError

_HEADS = 8
_PINV_STEPS = 6
_VALUE_KERNEL = 33


class TransMIL(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C). RequestError unless 8 divides E."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        if shape.embed_dim % _HEADS:
            raise RequestError(
                f"the head transmil needs --embed-dim to be a multiple of {_HEADS}, got {shape.embed_dim}"
            )
        self.embed = patch_embedding(shape)
        self.token = nn.Parameter(torch.randn(1, shape.embed_dim) * 0.02)
        self.first = NystromLayer(shape.embed_dim, shape.dropout)
        self.places = nn.ModuleList(
            nn.Conv2d(shape.embed_dim, shape.embed_dim, k, padding=k // 2, groups=shape.embed_dim) for k in (7, 5, 3)
        )
        self.second = NystromLayer(shape.embed_dim, shape.dropout)
        self.norm = nn.LayerNorm(shape.embed_dim)
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        tokens, attention = [], []
        for embedded in self.embed(self.standardise(bags)).split(bags.sizes):
            own, weights = self._slide(embedded)
            tokens.append(own)
            attention.append(weights)
        logits = self.classify(torch.stack([own[0] for own in tokens]))
        return MilOutput(logits, torch.cat(attention), self.classify(torch.cat([own[1:] for own in tokens])))

    def _slide(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """(N, E) -> tokens (1 + N, E) after the last layer, the class token first, and attention (N,)."""
        n = len(embedded)
        side = math.isqrt(n - 1) + 1
        square = torch.cat([embedded, embedded[: side * side - n]])
        x, _ = self.first(torch.cat([self.token.to(square.dtype), square]))
        x = torch.cat([x[:1], self._place(x[1:], side)])
        x, taken = self.second(x)
        taken = taken[1 : n + 1].clamp_min(0) + torch.finfo(taken.dtype).tiny
        return self.norm(x[: n + 1]), taken / taken.sum()

    def _place(self, x: Tensor, side: int) -> Tensor:
        """PPEG: (side², E) -> (side², E)."""
        square = x.T.reshape(1, -1, side, side)
        placed: Tensor = square + sum(convolution(square) for convolution in self.places)
        return placed.flatten(2)[0].T


class NystromLayer(nn.Module):
    """x -> x + self-attention(norm(x)) with E/2 landmarks: (n, E) -> (n, E), and what the first row takes, (n,)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.values = nn.Conv1d(_HEADS, _HEADS, _VALUE_KERNEL, padding=_VALUE_KERNEL // 2, groups=_HEADS, bias=False)
        self.landmarks = dim // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, dim = x.shape
        per = -(-n // self.landmarks)  # rows of a landmark; zero rows before the first fill them up
        padded = functional.pad(self.norm(x), (0, 0, per * self.landmarks - n, 0))
        q, k, v = (part.unflatten(1, (_HEADS, -1)).transpose(0, 1) for part in self.qkv(padded).chunk(3, dim=1))
        q = q / (dim // _HEADS) ** 0.5  # (heads, n, E / heads)
        q_marks, k_marks = (t.unflatten(1, (self.landmarks, per)).mean(2) for t in (q, k))
        to_marks = (q @ k_marks.transpose(1, 2)).softmax(2)
        from_marks = (q_marks @ k.transpose(1, 2)).softmax(2)
        inverse = _pseudo_inverse((q_marks @ k_marks.transpose(1, 2)).softmax(2))
        weights = to_marks @ inverse
        # the convolution of values runs over rows, for all their columns alike
        near = self.values(v.permute(2, 0, 1)).permute(1, 2, 0)
        mixed = weights @ (from_marks @ v) + near
        mixed = self.dropout(self.out(mixed.transpose(0, 1).flatten(1)))[-n:]
        taken = (weights[:, -n, None] @ from_marks)[:, 0, -n:].mean(0)
        return x + mixed, taken


def _pseudo_inverse(x: Tensor) -> Tensor:
    """Moore-Penrose inverse of (heads, m, m) by the iteration of the Nyströmformer paper (its equation 11)."""
    z = x.transpose(1, 2) / (x.abs().sum(2).max() * x.abs().sum(1).max())
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(_PINV_STEPS):
        xz = x @ z
        z = 0.25 * z @ (13 * unit - xz @ (15 * unit - xz @ (7 * unit - xz)))
    return z


def build(shape: HeadShape) -> TransMIL:
    return TransMIL(shape)
