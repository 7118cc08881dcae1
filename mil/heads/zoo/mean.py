"""Mean pooling, the baseline that attention has to beat: the same embedding and classifier, uniform weights.

Attention is 1/N for each patch of a bag of N.
"""

import torch
from torch import nn

from mil.heads.bags import Bags, segment_mean
from mil.heads.head import Head, HeadShape, MilOutput, patch_embedding


class MeanPooling(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C), contributions (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        attention = torch.cat([embedded.new_full((n,), 1 / n) for n in bags.sizes])
        logits, patch_logits = self.classify(segment_mean(embedded, bags.sizes)), self.classify(embedded)
        return MilOutput(logits, attention, patch_logits, contributions=attention.unsqueeze(1) * patch_logits)


def build(shape: HeadShape) -> MeanPooling:
    return MeanPooling(shape)
