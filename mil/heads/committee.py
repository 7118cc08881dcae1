"""Several heads as one, which says the weighted sum of what they say: of slides, of patches, of attention."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags
from mil.heads.head import Head, MilOutput


class Committee(Head):
    """bags (ΣN, D) -> logits Σ_m w_m logits_m + offset; attention is the weighted mean.

    Patch logits are the sum over those members that have them; class attention and contributions are None unless all
    members have them.
    """

    def __init__(self, members: Sequence[Head], n_classes: int) -> None:
        nn.Module.__init__(self)  # each member standardises features in its own way
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))
        self.register_buffer("offset", torch.zeros(n_classes))

    @property
    def heads(self) -> list[Head]:
        return [cast(Head, member) for member in self.members]

    def forward(self, bags: Bags) -> MilOutput:
        outputs: list[MilOutput] = [head(bags) for head in self.heads]
        total = self.get_buffer("weights").sum()
        class_attention = self._sum_or_none([o.class_attention for o in outputs])
        return MilOutput(
            logits=self._sum([o.logits for o in outputs]) + self.get_buffer("offset"),
            attention=self._sum([o.attention for o in outputs]) / total,
            patch_logits=self._sum_of_judges([o.patch_logits for o in outputs]),
            class_attention=None if class_attention is None else class_attention / total,
            contributions=self._sum_or_none([o.contributions for o in outputs]),
        )

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        total: Tensor = torch.tensordot(self.get_buffer("weights"), torch.stack(list(parts)), dims=1)
        return total

    def _sum_of_judges(self, parts: Sequence[Tensor]) -> Tensor:
        """NaN is what a head says of patches that judges slides alone."""
        if all(part.isnan().all() for part in parts):
            return parts[0]
        return self._sum([torch.zeros_like(part) if part.isnan().all() else part for part in parts])

    def _sum_or_none(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return self._sum(present) if len(present) == len(parts) else None


def joined(states: Sequence[Mapping[str, Tensor]], weights: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """The state of a committee whose members have these states; weights (M,), offset (C,)."""
    named = {f"members.{m}.{name}": tensor for m, state in enumerate(states) for name, tensor in state.items()}
    return {**named, "weights": weights.float(), "offset": offset.float()}
