"""A head that is told of columns of the slide table too: a linear term is added to its logits.

logits = those of the head + z W, where z (B, K) are the columns in the encoding of the model's own training slides. W
is learnt together with the head, from 0, so that the head learns what the columns leave open. Attention, patch logits
and contributions are the head's own: a column says nothing of a patch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags
from mil.heads.head import Head, HeadShape, MilOutput
from mil.tasks.losses import Criterion


@dataclass(frozen=True)
class _Told(MilOutput):
    of_slide: MilOutput | None = None  # what the head says without columns
    term: Tensor | None = None  # (B, C)


class WithCovariates(Head):
    """bags (ΣN, D) with covariates (B, K) -> what `head` says, the term added to its logits (B, C)."""

    def __init__(self, head: Head, shape: HeadShape) -> None:
        nn.Module.__init__(self)  # the head standardises features
        self.head = head
        self.for_classes_alone = head.for_classes_alone
        self.register_buffer("into", torch.zeros(shape.covariates, shape.covariates))
        self.register_buffer("shift", torch.zeros(shape.covariates))
        self.weights = nn.Parameter(torch.zeros(shape.covariates, shape.n_classes))
        self._speed = shape.embed_dim**0.5  # a column's one weight has to go as far as an embedding's many do together

    @property
    def of_slide(self) -> Head:
        return self.head

    def encode_by(self, into: Tensor, shift: Tensor) -> None:
        """The encoding (K, K) and (K,) of the training slides, see mil.cohort.covariates."""
        self.get_buffer("into").copy_(into)
        self.get_buffer("shift").copy_(shift)

    def forward(self, bags: Bags) -> MilOutput:
        assert bags.covariates is not None
        output = self.head(bags)
        with torch.autocast(bags.covariates.device.type, enabled=False):  # bfloat16 has two digits of an age
            given = bags.covariates.to(self.weights.dtype)
            term = self._speed * (given @ self.get_buffer("into") + self.get_buffer("shift")) @ self.weights
        shown = output.attention, output.patch_logits, output.class_attention, output.contributions
        return _Told(output.logits + term, *shown, of_slide=output, term=term)

    def bag_losses(self, output: MilOutput, bags: Bags, labels: Tensor, criterion: Criterion) -> Tensor:
        """Those of the head, in which each of its logits of a slide has the term."""
        assert isinstance(output, _Told) and output.of_slide is not None and output.term is not None
        term = output.term

        def told(logits: Tensor, labels: Tensor) -> Tensor:
            return criterion(logits + (term if len(logits) == len(term) else term[bags.owners]), labels)

        return self.head.bag_losses(output.of_slide, bags, labels, told)
