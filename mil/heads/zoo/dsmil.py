"""Dual-stream MIL: Li, Li, Eliceiri, "Dual-stream multiple instance learning network for whole slide image
classification with self-supervised contrastive learning", CVPR 2021.

One stream classifies each patch, s_i = W h_i; the patch with the largest s_ic is critical for class c. The other
attends to the patches that are like it, a_c = softmax over the bag of q(h_i)·q(h_critical) / √A, z_c = Σ a_ci h_i, and
classifies all z_c together. Loss and logits are the means over both streams.
`patch_logits` are s; `attention` is that of the predicted class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags, segment_max, segment_softmax
from mil.heads.head import Head, HeadShape, MilOutput, patch_embedding
from mil.tasks.losses import Criterion


@dataclass(frozen=True)
class DsmilOutput(MilOutput):
    streams: tuple[Tensor, Tensor] | None = None  # logits (B, C) of the critical patches and of the bag


class DSMIL(Head):
    """bags (ΣN, D) -> logits (B, C), class_attention and patch_logits (ΣN, C), attention (ΣN,)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.score = nn.Linear(shape.embed_dim, shape.n_classes)  # W
        self.query = nn.Sequential(
            nn.Linear(shape.embed_dim, shape.attention_dim),
            nn.ReLU(),
            nn.Linear(shape.attention_dim, shape.attention_dim),
            nn.Tanh(),
        )
        self.classify = nn.Linear(shape.n_classes * shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> DsmilOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        patch_logits = self.score(embedded)  # (ΣN, C)
        queries = self.query(embedded)  # (ΣN, A)
        likeness = []
        for own, scores in zip(queries.split(bags.sizes), patch_logits.detach().split(bags.sizes), strict=True):
            critical = own.index_select(0, scores.argmax(0))  # (C, A)
            likeness.append(own @ critical.T / own.shape[1] ** 0.5)
        attention = segment_softmax(torch.cat(likeness), bags.sizes)  # (ΣN, C)
        pooled = [a.T @ h for a, h in zip(attention.split(bags.sizes), embedded.split(bags.sizes), strict=True)]
        of_bag = self.classify(torch.stack(pooled).flatten(1))  # (B, C)
        of_critical = segment_max(patch_logits, bags.sizes)  # (B, C)
        logits = (of_bag + of_critical) / 2
        predicted = logits.detach().argmax(1, keepdim=True)[bags.owners]  # (ΣN, 1)
        return DsmilOutput(
            logits,
            attention.gather(1, predicted).squeeze(1),
            patch_logits,
            class_attention=attention,
            streams=(of_critical, of_bag),
        )

    def bag_losses(self, output: MilOutput, bags: Bags, labels: Tensor, criterion: Criterion) -> Tensor:
        assert isinstance(output, DsmilOutput) and output.streams is not None
        of_critical, of_bag = output.streams
        return (criterion(of_critical, labels) + criterion(of_bag, labels)) / 2


def build(shape: HeadShape) -> DSMIL:
    return DSMIL(shape)
