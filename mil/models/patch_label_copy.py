"""The baseline to beat: every patch inherits the label of its slide (Coudray et al., Nature Medicine 2018).

A linear classifier of patches is trained on the copied labels, which are wrong for most patches of a slide
with a small lesion. The slide's probabilities are the mean of its patches' probabilities; the logits are
their logarithm. Attention is each patch's share of the predicted class's score: its probability of that class
divided by the sum over the bag.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import Bags, segment_mean
from mil.models import HeadShape
from mil.models.head import Head, MilOutput


class PatchLabelCopy(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.classify = nn.Linear(shape.dim_in, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patch_logits = self.classify(self.dropout(self.standardise(bags)))  # (ΣN, C)
        probabilities = patch_logits.softmax(1)
        tiny = torch.finfo(probabilities.dtype).tiny
        logits = segment_mean(probabilities, bags.sizes).clamp_min(tiny).log()  # (B, C)
        of_class = zip(probabilities.split(bags.sizes), logits.argmax(1).tolist(), strict=True)
        attention = torch.cat([functional.normalize(p[:, c], p=1, dim=0) for p, c in of_class])
        return MilOutput(logits, attention, patch_logits)

    def loss(self, output: MilOutput, bags: Bags, labels: Tensor, class_weights: Tensor) -> Tensor:
        """Mean over patches of the weighted cross-entropy with the copied labels."""
        copied = labels.repeat_interleave(torch.tensor(bags.sizes, device=labels.device))  # (ΣN,)
        per_patch = functional.cross_entropy(output.patch_logits, copied, reduction="none")
        return (per_patch * class_weights[copied]).mean()


def build(shape: HeadShape) -> PatchLabelCopy:
    return PatchLabelCopy(shape)
