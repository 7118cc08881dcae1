"""CLAM with an attention branch for each class: Lu et al., Nature Biomedical Engineering 2021, see clam_sb.

For class c: a_c = softmax over the bag of w_c·(tanh(V h_i) * sigmoid(U h_i)); its logit is u_c·Σ a_ci h_i + b_c.
`attention` is that of the predicted class.
"""

import torch
from torch import nn

from mil.heads.bags import Bags, segment_softmax, segment_sum
from mil.heads.head import HeadShape
from mil.heads.zoo.clam_sb import ClamOutput, ClamSB


class ClamMB(ClamSB):
    """bags (ΣN, D) -> logits (B, C), class_attention, contributions, patch_logits (ΣN, C), attention (ΣN,)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.score = nn.Linear(shape.attention_dim, shape.n_classes)  # w_c

    def forward(self, bags: Bags) -> ClamOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        gated = torch.tanh(self.value(embedded)) * torch.sigmoid(self.gate(embedded))  # (ΣN, A)
        attention = segment_softmax(self.score(gated), bags.sizes)  # (ΣN, C)
        patch_logits = self.classify(embedded)
        contributions = attention * patch_logits
        logits = segment_sum(contributions, bags.sizes)
        predicted = logits.detach().argmax(1, keepdim=True)[bags.owners]  # (ΣN, 1)
        return ClamOutput(
            logits,
            attention.gather(1, predicted).squeeze(1),
            patch_logits,
            class_attention=attention,
            contributions=contributions,
            instance_logits=self.instance(embedded).unflatten(1, (-1, 2)),
        )


def build(shape: HeadShape) -> ClamMB:
    return ClamMB(shape)
