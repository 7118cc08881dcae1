"""Gated attention pooling: Ilse, Tomczak, Welling, "Attention-based deep multiple instance learning", ICML 2018.

h_i = embed(x_i); a = softmax over the bag of w·(tanh(V h_i) * sigmoid(U h_i)); logits = classify(Σ a_i h_i).
As the classifier is linear and Σ a_i = 1, the logits are also Σ a_i patch_logits_i.
"""

import torch
from torch import nn

from mil.bags import Bags, segment_softmax, segment_sum
from mil.models import HeadShape
from mil.models.head import Head, MilOutput, patch_embedding


class GatedABMIL(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.value = nn.Linear(shape.embed_dim, shape.attention_dim)  # V
        self.gate = nn.Linear(shape.embed_dim, shape.attention_dim)  # U
        self.score = nn.Linear(shape.attention_dim, 1)  # w
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        gated = torch.tanh(self.value(embedded)) * torch.sigmoid(self.gate(embedded))  # (ΣN, A)
        attention = segment_softmax(self.score(gated).squeeze(1), bags.sizes)  # (ΣN,)
        pooled = segment_sum(attention.unsqueeze(1) * embedded, bags.sizes)  # (B, E)
        return MilOutput(self.classify(pooled), attention, self.classify(embedded))


def build(shape: HeadShape) -> GatedABMIL:
    return GatedABMIL(shape)
