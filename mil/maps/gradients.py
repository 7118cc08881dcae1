"""How much each patch moved a head's decision, by gradient: input × gradient over the standardised features."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mil.heads.bags import pack
from mil.heads.committee import Committee
from mil.heads.head import Head
from tiling.jobs.errors import RequestError


def input_gradients(heads: Sequence[Head], features: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    """(N, C): Σ_d x_d · ∂ logit_c / ∂ x_d for each patch, the mean over models (Shrikumar et al. 2016).

    features: (N, D) as stored; x are those that the model's own training part standardised.
    RequestError for a head whose logits have no gradient.
    """
    each = [_of_model(head, features, device) for head in heads]
    return np.asarray(np.mean(each, axis=0, dtype=np.float64), np.float32)


def _of_model(head: Head, features: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    """Of a committee, whose logits are the weighted sum of its members', the same sum."""
    if not isinstance(head, Committee):
        return _of_one(head, features, device)
    weights = head.get_buffer("weights").cpu().numpy()
    each = [_of_one(member, features, device) for member in head.heads]
    return np.tensordot(weights, np.stack(each), axes=1).astype(np.float32)


def _of_one(head: Head, features: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    head, bags = head.of_slide, pack([features]).to(device)
    with torch.no_grad():
        given = head.standardise(bags)
    given = given.detach().float().requires_grad_()
    probe = copy.copy(head)  # shares the weights
    probe.standardise = lambda bags: given  # type: ignore[method-assign]
    logits = probe(bags).logits[0]
    if not logits.requires_grad:
        raise RequestError(
            f"--score gradient: the logits of {type(head).__name__} have no gradient; choose --score logit"
        )
    columns = [torch.autograd.grad(logit, given, retain_graph=True)[0] for logit in logits]
    return torch.stack([(given * column).sum(1) for column in columns], dim=1).detach().cpu().numpy()
