"""Max pooling of patch logits: the slide's logit of each class is that of the patch where it is largest.

Attention is on the patch that gave the logit of the predicted class; patches that are equal up to rounding share
it, so that their order does not matter.
"""

import torch
from torch import nn

from mil.bags import Bags, segment_max
from mil.models import HeadShape
from mil.models.head import Head, MilOutput, patch_embedding


class MaxPooling(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patch_logits = self.classify(self.embed(self.standardise(bags)))  # (ΣN, C)
        logits = segment_max(patch_logits, bags.sizes)  # (B, C)
        shares = []
        for predicted, of_bag in zip(logits.argmax(1).tolist(), patch_logits.detach().split(bags.sizes), strict=True):
            highest = torch.isclose(of_bag[:, predicted], of_bag[:, predicted].max()).to(of_bag.dtype)
            shares.append(highest / highest.sum())
        return MilOutput(logits, torch.cat(shares), patch_logits)


def build(shape: HeadShape) -> MaxPooling:
    return MaxPooling(shape)
