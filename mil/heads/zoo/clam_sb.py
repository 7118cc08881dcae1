"""CLAM with one attention branch: Lu et al., "Data-efficient and weakly supervised computational pathology on
whole-slide images", Nature Biomedical Engineering 2021.

Gated attention, and in training an instance loss: the classifier of the label's own class is taught that the 8 patches
with most attention show it and the 8 with least do not. With more than two classes, which then exclude each other, the
classifiers of the other classes are taught that the 8 with most attention do not show them (the paper's subtyping).
The loss is 0.7 of the slide and 0.3 of the instances, as in the paper. The instance loss is cross-entropy, where the
paper takes a smooth SVM; bags of fewer than 16 patches give half of theirs to each side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.bags import Bags
from mil.heads.head import HeadShape, MilOutput
from mil.heads.zoo.gated_abmil import GatedABMIL
from mil.tasks.losses import Criterion

PATCHES = 8  # with most, and as many with least attention
BAG_WEIGHT = 0.7


@dataclass(frozen=True)
class ClamOutput(MilOutput):
    instance_logits: Tensor | None = None  # (ΣN, C, 2): of each class's classifier, not shown or shown


class ClamSB(GatedABMIL):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C), contributions (ΣN, C)."""

    for_classes_alone = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.instance = nn.Linear(shape.embed_dim, 2 * shape.n_classes)

    def forward(self, bags: Bags) -> ClamOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        return ClamOutput(
            **vars(self.pool(embedded, bags)), instance_logits=self.instance(embedded).unflatten(1, (-1, 2))
        )

    def bag_losses(self, output: MilOutput, bags: Bags, labels: Tensor, criterion: Criterion) -> Tensor:
        assert isinstance(output, ClamOutput) and output.instance_logits is not None
        attention = output.attention if output.class_attention is None else output.class_attention
        by_class = attention.reshape(len(attention), -1).expand(-1, output.logits.shape[1])  # (ΣN, C)
        instances = instance_losses(output.instance_logits, by_class, bags.sizes, labels)
        return BAG_WEIGHT * criterion(output.logits, labels) + (1 - BAG_WEIGHT) * instances


def instance_losses(logits: Tensor, attention: Tensor, sizes: list[int], labels: Tensor) -> Tensor:
    """logits (ΣN, C, 2), attention (ΣN, C), labels (B,) -> (B,), the mean over the classifiers that are taught."""
    n_classes = logits.shape[1]
    losses = []
    for of_bag, weights, label in zip(logits.split(sizes), attention.detach().split(sizes), labels, strict=True):
        k = min(PATCHES, len(of_bag) // 2)
        if not k:  # a single patch is both the first and the last
            losses.append(of_bag.sum() * 0)
            continue
        order = weights.argsort(dim=0, stable=True)  # (N, C)
        chosen = torch.cat([order[-k:], order[:k]]).unsqueeze(2).expand(-1, -1, 2)  # (2k, C, 2)
        log_p = functional.log_softmax(of_bag.gather(0, chosen).float(), dim=2)
        shown = -torch.cat([log_p[:k, :, 1], log_p[k:, :, 0]]).mean(0)  # (C,) if the class is the label
        not_shown = -log_p[:k, :, 0].mean(0)  # (C,) if it is another one
        own = functional.one_hot(label, n_classes).to(shown.dtype)
        if n_classes > 2:
            losses.append((own * shown + (1 - own) * not_shown).mean())
        else:
            losses.append((own * shown).sum())
    return torch.stack(losses)


def build(shape: HeadShape) -> ClamSB:
    return ClamSB(shape)
