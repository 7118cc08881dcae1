"""Max pooling of patch logits: the slide's logit of each class is that of the patch where it is largest.

Attention is on the patch that gave the logit of the predicted class; patches that are equal up to rounding share
it, so that their order does not matter.
"""

from torch import nn

from mil.heads.bags import Bags, segment_max, segment_sum
from mil.heads.head import Head, HeadShape, MilOutput, patch_embedding


class MaxPooling(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patch_logits = self.classify(self.embed(self.standardise(bags)))  # (ΣN, C)
        logits = segment_max(patch_logits, bags.sizes)  # (B, C)
        predicted = logits.detach().argmax(1, keepdim=True)  # (B, 1)
        score = patch_logits.detach().gather(1, predicted[bags.owners])  # (ΣN, 1)
        largest = logits.detach().gather(1, predicted)[bags.owners]
        highest = (largest - score <= 1e-8 + 1e-5 * largest.abs()).to(score.dtype)
        attention = highest / segment_sum(highest, bags.sizes)[bags.owners]
        return MilOutput(logits, attention.squeeze(1), patch_logits)


def build(shape: HeadShape) -> MaxPooling:
    return MaxPooling(shape)
