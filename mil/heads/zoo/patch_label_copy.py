"""The baseline to beat: every patch inherits the label of its slide (Coudray et al., Nature Medicine 2018).

A linear classifier of patches is trained on the copied labels, which are wrong for most patches of a slide
with a small lesion. The slide's probabilities are the mean of its patches' probabilities; the logits are
their logarithm. Attention is each patch's share of the predicted class's score: its probability of that class
divided by the sum over the bag.
"""

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags, segment_mean, segment_sum
from mil.heads.head import Head, HeadShape, MilOutput
from mil.tasks.losses import Criterion


class PatchLabelCopy(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C)."""

    for_classes_alone = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.classify = nn.Linear(shape.dim_in, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patch_logits = self.classify(self.standardise(bags))  # (ΣN, C)
        probabilities = patch_logits.softmax(1)
        tiny = torch.finfo(probabilities.dtype).tiny
        logits = segment_mean(probabilities, bags.sizes).clamp_min(tiny).log()  # (B, C)
        share = probabilities.gather(1, logits.argmax(1, keepdim=True)[bags.owners])  # (ΣN, 1)
        attention = (share / segment_sum(share, bags.sizes)[bags.owners]).squeeze(1)
        return MilOutput(logits, attention, patch_logits)

    def bag_losses(self, output: MilOutput, bags: Bags, labels: Tensor, criterion: Criterion) -> Tensor:
        """(B,) mean over the bag's patches of the loss with the copied label."""
        return segment_mean(criterion(output.patch_logits, labels[bags.owners]), bags.sizes)


def build(shape: HeadShape) -> PatchLabelCopy:
    return PatchLabelCopy(shape)
