"""What a slide's logits cost, given its label: cross-entropy or a loss that bears wrong labels, weighted by class."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LOSSES = ("cross-entropy", "focal", "generalised-cross-entropy")
Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (n, C), labels (n,) int64 -> losses (n,)

_FOCUS = 2.0  # γ of Lin et al., "Focal loss for dense object detection", ICCV 2017
_TRUNCATION = 0.7  # q of Zhang and Sabuncu, "Generalized cross entropy loss", NeurIPS 2018


def criterion(name: str, class_weights: Tensor, label_smoothing: float = 0.0) -> Criterion:
    """The loss called `name`, one of LOSSES. class_weights (C,) multiply the loss of a slide of that class.

    p is the probability of the label's class, of `label_smoothing` mixed with the mean over classes:
    cross-entropy -log p, focal -(1 - p)² log p, generalised cross-entropy (1 - p^0.7) / 0.7.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        by_class = _by_class(name, logits.log_softmax(1))  # (n, C)
        target = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
        return (by_class * target).sum(1) * class_weights[labels]

    return loss


def _by_class(name: str, log_p: Tensor) -> Tensor:
    if name == "focal":
        return -((1 - log_p.exp()) ** _FOCUS) * log_p
    if name == "generalised-cross-entropy":
        return -torch.expm1(_TRUNCATION * log_p) / _TRUNCATION
    return -log_p
