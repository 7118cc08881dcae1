"""A committee says the weighted sum of what its members say, of patches by those members that judge any."""

import pytest
import torch

from mil.heads.bags import pack
from mil.heads.committee import Committee
from mil.heads.head import Head, HeadShape, MilOutput
from mil.heads.registry import build_head

SHAPE = HeadShape(4, 2, 8, 4, 0.0)


class Silent(Head):
    """Judges slides alone."""

    def forward(self, bags):
        none = torch.full((len(bags.features), 2), torch.nan)
        each = torch.cat([torch.full((n,), 1 / n) for n in bags.sizes])
        return MilOutput(torch.ones(len(bags.sizes), 2), each, none)


@pytest.fixture
def bags():
    torch.manual_seed(0)
    return pack([torch.randn(5, 4).half(), torch.randn(3, 4).half()])


@torch.no_grad()
def test_a_map_is_the_weighted_sum_of_the_members_that_have_one(bags):
    members = [build_head("mean", SHAPE).eval(), Silent(SHAPE).eval(), build_head("gated-abmil", SHAPE).eval()]
    committee = Committee(members, 2).eval()
    committee.weights.copy_(torch.tensor([0.5, 2.0, 1.5]))
    committee.offset.copy_(torch.tensor([0.0, 3.0]))
    said, (mean, _, gated) = committee(bags), [member(bags) for member in members]
    torch.testing.assert_close(said.patch_logits, 0.5 * mean.patch_logits + 1.5 * gated.patch_logits)
    torch.testing.assert_close(said.logits, 0.5 * mean.logits + 2 + 1.5 * gated.logits + torch.tensor([0.0, 3.0]))
    assert [part.sum().item() for part in said.attention.split([5, 3])] == pytest.approx([1, 1])
    assert said.contributions is None  # of a sum over patches where all are one
    assert Committee([Silent(SHAPE)] * 2, 2)(bags).patch_logits.isnan().all()
