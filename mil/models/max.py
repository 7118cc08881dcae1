"""Max pooling of patch logits: the slide's logit of each class is that of the patch where it is largest.

Attention is 1 on the patch that gave the logit of the predicted class (the first one among equals), else 0.
"""

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
        attention = patch_logits.new_zeros(len(patch_logits))
        starts = bags.offsets[:-1].tolist()
        for start, predicted, of_bag in zip(
            starts, logits.argmax(1).tolist(), patch_logits.split(bags.sizes), strict=True
        ):
            attention[start + int(of_bag[:, predicted].argmax())] = 1.0
        return MilOutput(logits, attention, patch_logits)


def build(shape: HeadShape) -> MaxPooling:
    return MaxPooling(shape)
