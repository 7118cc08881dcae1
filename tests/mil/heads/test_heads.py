"""Each head against other people's code with the same weights, or against its paper's formula, one bag at a time."""

import pytest
import torch
from nystrom_attention import NystromAttention
from torch import nn
from torch.nn import functional
from torchmil.models import ABMIL, DSMIL
from torchmil.models.transmil import PPEG

from mil.heads.bags import pack
from mil.heads.head import HeadShape
from mil.heads.registry import build_head
from mil.heads.zoo.clam_sb import instance_losses


def _head(name, n_classes=2, seed=0, embed_dim=16):
    torch.manual_seed(seed)
    return build_head(name, HeadShape(6, n_classes, embed_dim, 4, 0.25)).double().eval()


def _bag(n=23, seed=1):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _copy(target, **layers):
    """Give the layers of `target`, named by their path, the weights of other layers (or tensors)."""
    with torch.no_grad():
        for path, source in layers.items():
            layer = target.get_submodule(path.replace("__", "."))
            layer.weight.copy_(source.weight.reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(source.bias)


@pytest.mark.parametrize(("name", "gated"), [("abmil", False), ("gated-abmil", True)])
def test_attention_heads_equal_torchmil(name, gated):
    head, bag = _head(name), _bag()
    with torch.no_grad():
        head.score.bias.zero_()  # torchmil has none; the softmax is the same with any
        output = head(pack([bag]))
        for c in range(2):
            theirs = ABMIL(in_shape=(16,), att_dim=4, gated=gated).double()
            _copy(theirs, pool__fc1__module=head.value, pool__fc2=head.score)
            if gated:
                _copy(theirs, pool__fc_gated__module=head.gate)
            theirs.classifier.module.weight.copy_(head.classify.weight[c : c + 1])
            theirs.classifier.module.bias.copy_(head.classify.bias[c : c + 1])
            logit, scores = theirs(head.embed(bag)[None], return_att=True)
            torch.testing.assert_close(output.logits[:, c], logit)
            torch.testing.assert_close(output.attention, scores[0].softmax(0))


def test_dsmil_equals_torchmil():
    head, bag = _head("dsmil", n_classes=1), _bag()
    theirs = DSMIL(in_shape=(16,), att_dim=4, nonlinear_q=True, nonlinear_v=False).double()
    _copy(theirs, inst_classifier=head.score, bag_classifier=head.classify)
    _copy(theirs, q_nn__0=head.query[0], q_nn__2=head.query[2])
    theirs.eval()
    with torch.no_grad():
        output = head(pack([bag]))
        logit, attention, patch_logits = theirs(head.embed(bag)[None], return_att=True, return_inst_pred=True)
        torch.testing.assert_close(output.streams[1][:, 0], logit)
        torch.testing.assert_close(output.attention, attention[0, :, 0])
        torch.testing.assert_close(output.patch_logits[:, 0], patch_logits[0])
        torch.testing.assert_close(output.logits[:, 0], theirs.predict(head.embed(bag)[None]))


def test_dsmil_trains_both_streams():
    head, bags = _head("dsmil", n_classes=3), pack([_bag(5), _bag(7, 2)])
    output, labels = head(bags), torch.tensor([2, 0])
    losses = head.bag_losses(output, bags, labels, lambda x, y: functional.cross_entropy(x, y, reduction="none"))
    for i, label in enumerate(labels):
        critical = output.patch_logits[:5].max(0).values if i == 0 else output.patch_logits[5:].max(0).values
        both = [functional.cross_entropy(x[None], label[None]) for x in (critical, output.streams[1][i])]
        torch.testing.assert_close(losses[i], sum(both) / 2)


def test_clam_mb_is_an_attention_head_for_each_class():
    head, bag = _head("clam-mb", n_classes=3), _bag()
    output = head(pack([bag]))
    for c in range(3):
        alone = _head("gated-abmil", n_classes=1)
        _copy(alone, embed__1=head.embed[1], value=head.value, gate=head.gate)
        with torch.no_grad():
            for layer, source in ((alone.score, head.score), (alone.classify, head.classify)):
                layer.weight.copy_(source.weight[c : c + 1])
                layer.bias.copy_(source.bias[c : c + 1])
        expected = alone(pack([bag]))
        torch.testing.assert_close(output.logits[:, c], expected.logits[:, 0])
        torch.testing.assert_close(output.class_attention[:, c], expected.attention)
    torch.testing.assert_close(output.attention, output.class_attention[:, output.logits[0].argmax()])


def test_clam_sb_is_gated_attention_where_nothing_is_trained():
    head, plain, bags = _head("clam-sb"), _head("gated-abmil"), pack([_bag(), _bag(3, 2)])
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("instance")})
    torch.testing.assert_close(head(bags).logits, plain(bags).logits)


def _inst_eval(logits, attention, k, targets):
    """The instance evaluation of CLAM's own code, from the scores of one class's classifier, (N, 2)."""
    top, bottom = attention.topk(k).indices, (-attention).topk(k).indices
    if targets == "in":
        labels = torch.tensor([1] * k + [0] * k)
        return functional.cross_entropy(logits[torch.cat([top, bottom])], labels)
    return functional.cross_entropy(logits[top], torch.zeros(k, dtype=torch.int64))


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
def test_instance_loss_equals_that_of_clam(name, n_classes):
    head, bags, labels = _head(name, n_classes), [_bag(40), _bag(9, 2)], torch.tensor([1, 0])
    output = head(pack(bags))
    got = head.bag_losses(output, pack(bags), labels, lambda x, y: functional.cross_entropy(x, y, reduction="none"))
    start = 0
    for i, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        own = slice(start, start + len(bag))
        start += len(bag)
        k, total = min(8, len(bag) // 2), 0.0
        for c in range(n_classes):
            attention = output.attention if output.class_attention is None else output.class_attention[:, c]
            if c == label:
                total += _inst_eval(output.instance_logits[own, c], attention[own], k, "in")
            elif n_classes > 2:
                total += _inst_eval(output.instance_logits[own, c], attention[own], k, "out")
        instance = total / n_classes if n_classes > 2 else total
        slide = functional.cross_entropy(output.logits[i : i + 1], label[None])
        torch.testing.assert_close(got[i], 0.7 * slide + 0.3 * instance)


def test_a_bag_of_one_has_no_instance_loss():
    losses = instance_losses(torch.randn(1, 2, 2), torch.ones(1, 2), [1], torch.tensor([1]))
    assert losses.tolist() == [0]


@pytest.mark.parametrize("n", [1, 2, 9, 23, 60])
def test_transmil_equals_its_parts_by_other_people(n):
    """The layers of nystrom_attention and the PPEG of torchmil, put together as in the paper's code."""
    head, bag = _head("transmil", n_classes=3), _bag(n)
    dim = 16

    def layer(ours):
        theirs = NystromAttention(dim, dim_head=dim // 8, heads=8, num_landmarks=dim // 2, residual=True).double()
        _copy(theirs, to_qkv=ours.qkv, to_out__0=ours.out)
        with torch.no_grad():
            theirs.res_conv.weight.copy_(ours.values.weight.unsqueeze(3))
        return lambda x: theirs.eval()(functional.layer_norm(x, (dim,)), return_attn=True)

    ppeg = PPEG(dim).double()
    _copy(ppeg, proj=head.places[0], proj1=head.places[1], proj2=head.places[2])
    with torch.no_grad():
        h = head.embed(bag)[None]
        side = 1
        while side * side < n:
            side += 1
        x = torch.cat([head.token[None], h, h[:, : side * side - n]], dim=1)
        x = x + layer(head.first)(x)[0]
        x = ppeg(x, side, side)
        mixed, attention = layer(head.second)(x)
        x = functional.layer_norm(x + mixed, (dim,))
        padding = attention.shape[-1] - x.shape[1]
        taken = attention[0, :, padding, padding + 1 :][:, :n].mean(0).clamp_min(0)
        output = head(pack([bag]))
        torch.testing.assert_close(output.logits, head.classify(x[:, 0]))
        torch.testing.assert_close(output.patch_logits, head.classify(x[0, 1 : n + 1]))
        if taken.sum() > 0:
            torch.testing.assert_close(output.attention, taken / taken.sum())


def test_transmil_pads_the_square_with_the_first_patches():
    with torch.no_grad():
        head, bag = _head("transmil"), _bag(8)
        nine = head(pack([torch.cat([bag, bag[:1]])]))
        torch.testing.assert_close(head(pack([bag])).logits, nine.logits)


def test_additive_is_the_formula_of_the_paper():
    head, bag = _head("additive"), _bag(9)
    output = head(pack([bag, _bag(4, 2)]))
    h = head.embed(bag)
    scores = head.score(torch.tanh(head.value(h)) * torch.sigmoid(head.gate(h)))[:, 0]
    attention = scores.exp() / scores.exp().sum()
    f = nn.Sequential(head.hidden, head.classify)
    each = torch.stack([f(9 * a * x) / 9 for a, x in zip(attention, h, strict=True)])
    torch.testing.assert_close(output.contributions[:9], each)
    torch.testing.assert_close(output.logits[0], each.sum(0))


def test_top_k_is_the_mean_of_the_largest():
    head, bag = _head("top-k", n_classes=3), _bag(23)
    output = head(pack([bag, _bag(4, 2)]))
    patch_logits = output.patch_logits[:23]
    torch.testing.assert_close(output.logits[0], patch_logits.sort(dim=0, descending=True).values[:10].mean(0))
    torch.testing.assert_close(output.logits[1], output.patch_logits[23:].mean(0))
    predicted = patch_logits[:, output.logits[0].argmax()]
    expected = torch.zeros(23, dtype=torch.float64)
    expected[predicted.argsort(descending=True)[:10]] = 0.1
    torch.testing.assert_close(output.attention[:23], expected)


def test_top_k_shares_what_is_left_among_equal_patches():
    with torch.no_grad():
        head, bag = _head("top-k"), _bag(1).expand(20, -1)
        assert head(pack([bag])).attention.tolist() == pytest.approx([1 / 20] * 20)
