"""Additive MIL: Javed et al., "Additive MIL: intrinsically interpretable multiple instance learning for pathology",
NeurIPS 2022.

a is the gated attention of Ilse et al.; patch i adds f(N a_i h_i) / N to the logits, f being a small network. So the
logits are the sum of what each patch says for and against each class, and nothing else. The factors N, which the
paper does not have, keep the scale of f's input and of its bias the same for a bag of 10 and one of 10,000.
`patch_logits` are the logits that a slide would have of which all patches contributed like this one.
"""

from dataclasses import replace

import torch
from torch import nn

from mil.heads.bags import Bags, segment_mean, segment_softmax
from mil.heads.head import HeadShape, MilOutput
from mil.heads.zoo.gated_abmil import GatedABMIL


class Additive(GatedABMIL):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C), contributions (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(replace(shape, targets=()))  # one attention for all of them
        self.hidden = nn.Sequential(nn.Linear(shape.embed_dim, shape.attention_dim), nn.ReLU())
        self.classify = nn.Linear(shape.attention_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        attention = segment_softmax(self.scores(embedded), bags.sizes)
        sizes = torch.tensor(bags.sizes, device=embedded.device)[bags.owners].to(embedded.dtype).unsqueeze(1)
        patch_logits = self.classify(self.hidden(sizes * attention.unsqueeze(1) * embedded))  # (ΣN, C)
        return MilOutput(
            segment_mean(patch_logits, bags.sizes), attention, patch_logits, contributions=patch_logits / sizes
        )


def build(shape: HeadShape) -> Additive:
    return Additive(shape)
