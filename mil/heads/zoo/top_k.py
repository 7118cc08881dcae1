"""Mean of the k largest patch logits: the slide's logit of each class is their mean over the bag's top k patches.

Between `max` (k = 1, Campanella et al., "Clinical-grade computational pathology using weakly supervised deep learning
on whole slide images", Nature Medicine 2019) and `mean` of patch logits. Attention is 1/k on those patches that gave
the logit of the predicted class; patches equal up to rounding to the k-th share what is left, so that their order does
not matter.
"""

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags
from mil.heads.head import Head, HeadShape, MilOutput, patch_embedding

TOP = 10  # k, or the whole bag if it is smaller


class TopK(Head):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C), contributions (ΣN, C)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed = patch_embedding(shape)
        self.classify = nn.Linear(shape.embed_dim, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patch_logits = self.classify(self.embed(self.standardise(bags)))  # (ΣN, C)
        logits, attention, contributions = [], [], []
        for of_bag in patch_logits.split(bags.sizes):
            k = min(TOP, len(of_bag))
            top = of_bag.topk(k, dim=0).values  # (k, C)
            shares = _shares(of_bag.detach(), top[-1].detach(), k)  # (N, C)
            logits.append(top.mean(0))
            contributions.append(shares * of_bag)
            predicted = top.detach().mean(0).argmax(0, keepdim=True)  # (1,)
            attention.append(shares.index_select(1, predicted).squeeze(1))
        return MilOutput(
            torch.stack(logits), torch.cat(attention), patch_logits, contributions=torch.cat(contributions)
        )


def _shares(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """(N, C), each column sums to 1: 1/k above `least` (C,), the rest in equal parts for those that equal it."""
    equal = ((scores - least).abs() <= 1e-8 + 1e-5 * least.abs()).to(scores.dtype)
    above = (scores > least).to(scores.dtype) * (1 - equal)
    return above / k + equal * (k - above.sum(0)) / (k * equal.sum(0))


def build(shape: HeadShape) -> TopK:
    return TopK(shape)
