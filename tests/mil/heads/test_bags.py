"""Packed bags equal one bag at a time: the same pooling, for every head, in values and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mil.heads.bags import pack, segment_max, segment_mean, segment_softmax, segment_sum
from mil.heads.head import HeadShape
from mil.heads.registry import HEADS, build_head
from mil.tasks.losses import LOSSES, criterion

PACKED = sorted(set(HEADS) - {"needle", "bag-stats"})  # with a training of their own, and tests of their own
SHAPE = HeadShape(dim_in=5, n_classes=3, embed_dim=8, attention_dim=3, dropout=0.25)
PARTS = ("logits", "attention", "patch_logits", "class_attention", "contributions")
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def _bags(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, SHAPE.dim_in, generator=generator, dtype=torch.float64) for n in sizes]


def _head(name, seed=0):
    torch.manual_seed(seed)
    head = build_head(name, SHAPE).double().eval()
    head.mean.copy_(torch.randn(SHAPE.dim_in, dtype=torch.float64))
    head.std.copy_(torch.rand(SHAPE.dim_in, dtype=torch.float64) + 0.5)
    return head


def test_segments_by_hand():
    values = torch.tensor([[1.0], [3.0], [-5.0], [2.0], [2.0]])
    assert segment_sum(values, [2, 1, 2]).flatten().tolist() == [4, -5, 4]
    assert segment_mean(values, [2, 1, 2]).flatten().tolist() == [2, -5, 2]
    assert segment_max(values, [2, 1, 2]).flatten().tolist() == [3, -5, 2]
    assert segment_softmax(torch.tensor([0.0, np.log(3), 7.0]), [2, 1]).tolist() == pytest.approx([0.25, 0.75, 1])


def test_softmax_of_huge_scores_is_finite():
    assert segment_softmax(torch.tensor([1e30, 0.0, -1e30, 1e30]), [2, 2]).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("share", [1.0, 1000.0])
def test_a_bag_of_one_beside_one_of_200000(share):
    """float32 against numpy in float64: rounding does not grow with the bag."""
    rng, sizes = np.random.default_rng(0), [1, 200_000, 1]
    scores, values = rng.normal(size=sum(sizes)) * share, rng.normal(size=(sum(sizes), 3)) + 1
    scores, values = scores.astype(np.float32), values.astype(np.float32)
    attention = segment_softmax(torch.from_numpy(scores), sizes)
    pooled = segment_sum(attention.unsqueeze(1) * torch.from_numpy(values), sizes)
    mean = segment_mean(torch.from_numpy(values), sizes)
    for bag, rows in enumerate(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])):
        weights = np.exp(scores[rows].astype(np.float64) - scores[rows].max())
        weights /= weights.sum()
        np.testing.assert_allclose(attention[rows], weights, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(pooled[bag], weights @ values[rows], rtol=1e-5)
        np.testing.assert_allclose(mean[bag], values[rows].mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_an_empty_bag_is_refused():
    with pytest.raises(ValueError, match="bag 1 of 2 is empty"):
        pack([torch.zeros(2, 5), torch.zeros(0, 5)])


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 999))
def test_packed_equals_one_by_one(name, sizes, seed):
    head, features = _head(name, seed), _bags(sizes, seed)
    packed_bags = pack(features)
    packed = head(packed_bags)
    singles = [head(pack([f])) for f in features]
    for part in [part for part in PARTS if getattr(packed, part) is not None]:
        one_by_one = torch.cat([getattr(single, part) for single in singles])
        torch.testing.assert_close(getattr(packed, part), one_by_one, rtol=1e-12, atol=1e-12)
    packed.logits.square().sum().backward()
    together = [p.grad.clone() if p.grad is not None else None for p in head.parameters()]
    head.zero_grad()
    for single in singles:
        single.logits.square().sum().backward()
    for gradient, parameter in zip(together, head.parameters(), strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 999))
def test_attention_sums_to_one_and_order_of_patches_does_not_matter(name, sizes, seed):
    head, features = _head(name, seed), _bags(sizes, seed)
    output = head(pack(features))
    assert (output.attention >= 0).all()
    sums = segment_sum(output.attention, sizes)
    torch.testing.assert_close(sums, torch.ones(len(sizes), dtype=torch.float64))
    if output.class_attention is not None:
        assert (output.class_attention >= 0).all()
        sums = segment_sum(output.class_attention, sizes)
        torch.testing.assert_close(sums, torch.ones(len(sizes), SHAPE.n_classes, dtype=torch.float64))
    if output.contributions is not None:
        torch.testing.assert_close(segment_sum(output.contributions, sizes), output.logits)
    if name == "transmil":  # lays the patches out in their order
        return
    orders = [torch.from_numpy(np.random.default_rng(seed).permutation(n)) for n in sizes]
    shuffled = head(pack([f[order] for f, order in zip(features, orders, strict=True)]))
    torch.testing.assert_close(shuffled.logits, output.logits, rtol=1e-12, atol=1e-12)
    expected = [a[order] for a, order in zip(output.attention.split(sizes), orders, strict=True)]
    torch.testing.assert_close(shuffled.attention, torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_gated_attention_equals_the_formula_of_the_paper():
    head = _head("gated-abmil")
    (x,) = _bags([6])
    output = head(pack([x]))
    w = {name: value.detach() for name, value in head.named_parameters()}
    h = ((x - head.mean) / head.std @ w["embed.1.weight"].T + w["embed.1.bias"]).clamp_min(0)
    tanh = torch.tanh(h @ w["value.weight"].T + w["value.bias"])
    gate = 1 / (1 + torch.exp(-(h @ w["gate.weight"].T + w["gate.bias"])))
    exponent = torch.exp((tanh * gate) @ w["score.weight"][0] + w["score.bias"])
    attention = exponent / exponent.sum()
    patch_logits = h @ w["classify.weight"].T + w["classify.bias"]
    torch.testing.assert_close(output.attention, attention)
    torch.testing.assert_close(output.patch_logits, patch_logits)
    torch.testing.assert_close(output.logits[0], attention @ h @ w["classify.weight"].T + w["classify.bias"])
    torch.testing.assert_close(output.logits[0], attention @ patch_logits)


def test_what_the_baselines_attend_to():
    features = _bags([4, 3])
    bags = pack(features)
    assert _head("mean")(bags).attention.tolist() == pytest.approx([1 / 4] * 4 + [1 / 3] * 3)
    maximum = _head("max")(bags)
    first = maximum.patch_logits[:4]
    predicted = int(first.max(0).values.argmax())
    torch.testing.assert_close(maximum.logits[0], first.max(0).values)
    assert maximum.attention[:4].tolist() == [float(i == first[:, predicted].argmax()) for i in range(4)]
    copied = _head("patch-label-copy")(bags)
    probabilities = copied.patch_logits[:4].softmax(1)
    torch.testing.assert_close(copied.logits[0].softmax(0), probabilities.mean(0))
    share = probabilities[:, probabilities.mean(0).argmax()]
    torch.testing.assert_close(copied.attention[:4], share / share.sum())


def test_losses():
    labels, weights = torch.tensor([2, 0]), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    cross_entropy = criterion("cross-entropy", weights)
    bags = pack(_bags([4, 3]))
    head = _head("gated-abmil")
    output = head(bags)
    log_p = output.logits.log_softmax(1)
    expected = -(0.5 * log_p[0, 2] + 2 * log_p[1, 0]) / 2
    torch.testing.assert_close(head.bag_losses(output, bags, labels, cross_entropy).mean(), expected)
    copying = _head("patch-label-copy")
    output = copying(bags)
    by_patch = functional.cross_entropy(output.patch_logits, torch.tensor([2] * 4 + [0] * 3), reduction="none")
    expected = torch.stack([by_patch[:4].mean() * 0.5, by_patch[4:].mean() * 2])
    torch.testing.assert_close(copying.bag_losses(output, bags, labels, cross_entropy), expected)


def test_standardisation_is_part_of_the_model():
    head = _head("mean")
    x = _bags([3])[0]
    plain = build_head("mean", SHAPE).double().eval()
    state = {k: v for k, v in head.state_dict().items() if k not in ("mean", "std")}
    plain.load_state_dict(state, strict=False)
    torch.testing.assert_close(head(pack([x])).logits, plain(pack([(x - head.mean) / head.std])).logits)


def test_max_shares_attention_among_equal_patches():
    """Two patches whose embedding is all zero have the same logits; rounding must not choose between them."""
    head, features = _head("max", 2), _bags([6], 2)
    with torch.no_grad():
        head.embed[1].bias.fill_(-100)  # ReLU gives 0 everywhere
    assert head(pack(features)).attention.tolist() == pytest.approx([1 / 6] * 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_their_formulas(smoothing):
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    labels, weights = torch.tensor([0, 2]), torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)
    formulas = {
        "cross-entropy": lambda p: -math.log(p),
        "focal": lambda p: -((1 - p) ** 2) * math.log(p),
        "generalised-cross-entropy": lambda p: (1 - p**0.7) / 0.7,
    }
    assert set(formulas) == set(LOSSES)
    for name, formula in formulas.items():
        got = criterion(name, weights, smoothing)(logits, labels)
        for row, label in enumerate(labels.tolist()):
            p = [math.exp(v) / sum(math.exp(w) for w in logits[row].tolist()) for v in logits[row].tolist()]
            shares = [(1 - smoothing) * (c == label) + smoothing / 3 for c in range(3)]
            expected = weights[label] * sum(s * formula(q) for s, q in zip(shares, p, strict=True))
            assert float(got[row]) == pytest.approx(float(expected), rel=1e-12)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(criterion("cross-entropy", torch.ones(3), smoothing)(logits, labels), plain)
