"""Standardisation with dropout in blocks equals the formula, for one model and for several at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from mil.heads import standardise as module
from mil.heads.bags import pack
from mil.heads.dropout import Noise, seed_dropout
from mil.heads.head import HeadShape
from mil.heads.registry import build_head
from mil.heads.standardise import standardise


@settings(deadline=None)
@given(
    patches=st.integers(1, 9),
    models=st.integers(1, 3),
    block=st.sampled_from([1, 12, 1000]),
    share=st.none() | st.floats(0.1, 1.0),
    limit=st.sampled_from([0.0, 0.5]),
)
def test_equals_the_formula(patches, models, block, share, limit):
    rng = np.random.default_rng(patches)
    x = torch.from_numpy(rng.normal(size=(patches, 5)).astype(np.float16))
    mean, std = torch.from_numpy(rng.normal(size=(2, models, 5))).abs()
    keep = None if share is None else torch.from_numpy(rng.integers(2, size=(patches, 5), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_VALUES", block)
        each = torch.stack([standardise(x, m, s, keep, share or 1.0, limit) for m, s in zip(mean, std, strict=True)])
        together = vmap(lambda m, s: standardise(x, m, s, keep, share or 1.0, limit))(mean, std)
    expected = (x.double() - mean[:, None]) / std[:, None]
    if limit:
        expected = expected.clamp(-limit, limit)
    if share is not None:
        expected = expected * keep.double() / share
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=0)
    assert torch.equal(together, each) and not each.requires_grad


def test_dropout_is_for_training_alone():
    """Out of training all features count once; in training a quarter is gone and the rest scaled up by 4/3."""
    head = build_head("mean", HeadShape(dim_in=64, n_classes=2, embed_dim=4, attention_dim=3, dropout=0.25))
    noise = Noise(0)
    seed_dropout(head, noise)
    bags = pack([torch.ones(100, 64, dtype=torch.float16)])
    noise.set([0], bags.sizes, 1)
    assert (head.eval().standardise(bags) == 1).all()
    dropped = head.train().standardise(bags)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 0.22 < (dropped == 0).float().mean() < 0.28


def test_a_feature_that_is_constant_but_for_a_patch_cannot_outweigh_the_others():
    """Without a limit, as in checkpoints of earlier releases, it is as many deviations away as it is."""
    features = torch.zeros(10_000, 2, dtype=torch.float16)
    features[0, 0] = 1
    for limit, expected in ((0.0, 99.99), (8.0, 8.0)):
        head = build_head("mean", HeadShape(2, 2, 4, 3, 0.0, limit)).eval()
        head.mean.copy_(features.float().mean(0))
        head.std.copy_(torch.tensor([features[:, 0].float().std(correction=0), 1.0]))
        assert head.standardise(pack([features]))[0, 0].item() == pytest.approx(expected, rel=1e-3)
    assert HeadShape(2, 2, 4, 3, 0.0).feature_limit == 0
