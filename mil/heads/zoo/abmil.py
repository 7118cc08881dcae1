"""Attention pooling without the gate: Ilse, Tomczak, Welling, "Attention-based deep multiple instance learning", 2018.

h_i = embed(x_i); a = softmax over the bag of w·tanh(V h_i); logits = classify(Σ a_i h_i) = Σ a_i patch_logits_i.
"""

import torch
from torch import Tensor, nn

from mil.heads.head import AttentionPooling, HeadShape


class ABMIL(AttentionPooling):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C), contributions (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.value = nn.Linear(shape.embed_dim, shape.attention_dim)  # V
        self.score = nn.Linear(shape.attention_dim, len(shape.targets) or 1)  # w, of each target
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def scores(self, embedded: Tensor) -> Tensor:
        scores: Tensor = self.score(torch.tanh(self.value(embedded))).squeeze(1)
        return scores


def build(shape: HeadShape) -> ABMIL:
    return ABMIL(shape)
