"""Several heads of one kind as one, which says what they say on average: of slides, of patches, of attention."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mil.heads.bags import Bags
from mil.heads.head import Head, MilOutput


class Committee(Head):
    """bags (ΣN, D) -> the mean of its members' outputs; None is what members do not have."""

    def __init__(self, members: Sequence[Head]) -> None:
        nn.Module.__init__(self)  # each member standardises features in its own way
        self.members = nn.ModuleList(members)

    @property
    def heads(self) -> list[Head]:
        return [cast(Head, member) for member in self.members]

    def forward(self, bags: Bags) -> MilOutput:
        outputs: list[MilOutput] = [head(bags) for head in self.heads]
        return MilOutput(
            logits=_mean([o.logits for o in outputs]),
            attention=_mean([o.attention for o in outputs]),
            patch_logits=_mean([o.patch_logits for o in outputs]),
            class_attention=_mean_or_none([o.class_attention for o in outputs]),
            contributions=_mean_or_none([o.contributions for o in outputs]),
        )


def joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of a committee whose members have these states."""
    return {f"members.{m}.{name}": tensor for m, state in enumerate(states) for name, tensor in state.items()}


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(0)


def _mean_or_none(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return _mean(present) if len(present) == len(parts) else None
