"""Packed bags: the patches of B slides as one matrix, so that a linear layer runs once for all of them.

Pooling goes over the B slices of that matrix. This keeps it equal to one bag at a time and, unlike a
scatter with atomic additions, gives the same bits on a GPU each time; B is small beside the number of patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bags:
    """features (ΣN, D) of any float type; offsets (B + 1,) int64 on the CPU, from 0 to ΣN, strictly rising.

    covariates: (B, K), for heads that are told of columns of the slide table.
    """

    features: Tensor
    offsets: Tensor
    covariates: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Patches of each bag, B numbers of at least 1."""
        sizes: list[int] = self.offsets.diff().tolist()
        return sizes

    @property
    def owners(self) -> Tensor:
        """(ΣN,) int64 on the device of the features: the bag that each patch belongs to."""
        bags = torch.arange(len(self.offsets) - 1).repeat_interleave(self.offsets.diff())
        return bags.to(self.features.device)

    def to(self, device: torch.device) -> "Bags":
        """On a GPU through pinned memory, so that the copy does not wait for work under way."""
        features = self.features
        if device.type == "cuda" and not features.is_cuda:
            features = features.pin_memory()
        covariates = None if self.covariates is None else self.covariates.to(device)
        return Bags(features.to(device, non_blocking=True), self.offsets, covariates)


def pack(features: Sequence[Tensor], covariates: Tensor | None = None) -> Bags:
    """B matrices (N, D) with N >= 1 -> one batch. ValueError for an empty bag, whose pooling is undefined."""
    sizes = [len(f) for f in features]
    if 0 in sizes:
        raise ValueError(f"bag {sizes.index(0)} of {len(sizes)} is empty")
    matrix = torch.cat(list(features)) if len(features) > 1 else features[0]  # a large bag is not copied
    return Bags(matrix, torch.tensor([0, *sizes]).cumsum(0), covariates)


def segment_softmax(scores: Tensor, sizes: list[int]) -> Tensor:
    """(ΣN,) or (ΣN, C) -> the same shape, a softmax within each bag (and column)."""
    return torch.cat([of_bag.softmax(0) for of_bag in scores.split(sizes)])


def segment_sum(values: Tensor, sizes: list[int]) -> Tensor:
    """(ΣN, E) -> (B, E)."""
    return torch.stack([of_bag.sum(0) for of_bag in values.split(sizes)])


def segment_mean(values: Tensor, sizes: list[int]) -> Tensor:
    """(ΣN, E) -> (B, E)."""
    return torch.stack([of_bag.mean(0) for of_bag in values.split(sizes)])


def segment_max(values: Tensor, sizes: list[int]) -> Tensor:
    """(ΣN, E) -> (B, E); among equal values the gradient goes to one of them."""
    return torch.stack([of_bag.max(0).values for of_bag in values.split(sizes)])
