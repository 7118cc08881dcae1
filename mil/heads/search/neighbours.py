"""First guesses by neighbours: how near a patch's nearest neighbour is in each other slide.

A patch of a kind that only positive slides have is near to something in these and not in the others (the idea of
diverse density, Maron and Lozano-Pérez, NIPS 1998). This needs few slides, and kinds that lie apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mil.heads.search.learners import Floats, Guess, Indices, Learners

_PAIRS = 1 << 32  # most pairs of patches whose distance is asked for
_REFERENCES = 32  # slides, where all would be too many pairs


def neighbours(projected: Sequence[Tensor], learners: Learners, rng: np.random.Generator) -> Guess:
    """projected: S of (N, d) float32. Each patch's t statistic of log distances to positive and to negative slides."""
    unit = [functional.normalize(x) for x in projected]
    asked, references = _within_budget(np.array([len(x) for x in unit]), learners.positive, rng)
    guess = {}
    for i in asked.tolist():
        others = references[references != i]
        distance = torch.stack([1 - (unit[i] @ unit[j].T).amax(1) for j in others], dim=1)  # (N, R)
        distances = distance.clamp_min(1e-6).log().double().cpu().numpy()
        known = learners.without(i)[:, others]
        guess[i] = np.stack([_t(distances, own, learners.positive[others]) for own in known])
    return guess


def _within_budget(sizes: Indices, positive: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Positive slides whose patches are asked, and slides that they are compared with; all, if that is possible."""
    asked, references = np.flatnonzero(positive), np.arange(len(sizes))
    if sizes[asked].sum() * sizes.sum() > _PAIRS:
        each = [rng.permutation(np.flatnonzero(positive == c))[: _REFERENCES // 2] for c in (False, True)]
        references = np.sort(np.concatenate(each))
        order = rng.permutation(asked)
        fits = np.cumsum(sizes[order]) * sizes[references].sum() <= _PAIRS
        asked = np.sort(order[: max(4, int(fits.sum()))])
    return asked, references


def _t(distances: Floats, known: NDArray[np.bool_], positive: NDArray[np.bool_]) -> Floats:
    """Welch's statistic of log distances (N, R) to known positive and negative slides -> (N,)"""
    near, far = distances[:, known & positive], distances[:, known & ~positive]
    if min(near.shape[1], far.shape[1]) < 2:
        return np.zeros(len(distances))
    spread = near.var(axis=1) / near.shape[1] + far.var(axis=1) / far.shape[1]
    t: Floats = (far.mean(axis=1) - near.mean(axis=1)) / np.sqrt(spread + 1e-9)
    return t
