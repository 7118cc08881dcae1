"""First guesses at which patches of positive slides belong to what negative slides do not have. No training in it.

*Neighbours* asks of a patch how near its nearest neighbour is in each other slide. One of a kind that only positive
slides have is near to something in these and not in the others (the idea of diverse density, Maron and Lozano-Pérez,
NIPS 1998). It needs few slides, and kinds that lie apart.

*Local discriminants* ask in which direction patches of positive slides differ from those of negative ones among patches
alike: the difference of means in each k-means cell, as far as two halves of the slides agree on it. It needs many
patches, and finds kinds that overlap with normal ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional

from mil.heads.search.learners import Floats, Indices, Learners

_PAIRS = 1 << 33  # most pairs of patches whose distance is asked for
_REFERENCES = 64  # slides, where all would be too many pairs
_CELLS, _PATCHES_A_CELL = (16, 48, 128), 500  # as many cells as there are patches for
_LEAST_IN_CELL = 5  # patches of each class in each half
_BY_CHANCE = 2.0  # deviations of the cosine of two directions without anything in common
_CELL_SAMPLE = 100_000

Guess = dict[int, Floats]  # by positive slide: scores (Q, N) of its patches, of each learner that learns from it


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


def cell_counts(patches: int) -> list[int]:
    """How finely patches may be divided: the more, the purer the cells, and the fewer patches each has."""
    return [count for count in _CELLS if count * _PATCHES_A_CELL <= patches] or [max(1, patches // _PATCHES_A_CELL)]


def local_discriminants(
    projected: Sequence[Tensor], scale: Tensor, count: int, learners: Learners, rng: np.random.Generator
) -> Guess:
    """projected: S of (N, d) float32, in cells as they are; scale (d,) makes directions out of them comparable.

    Each patch's part along its own cell's direction.
    """
    cells = _cells(projected, count, rng)
    whitened = [x / scale for x in projected]
    half, positive = _halves(learners, rng), learners.positive.astype(np.int64)
    sums = np.stack([_sums(x, own, count) for x, own in zip(whitened, cells, strict=True)])  # (S, cells, 1 + d)
    groups = [[learners.learns & (half == h) & (positive == c) for c in (0, 1)] for h in (0, 1)]
    of_all = np.einsum("hcqs,s...->qhc...", np.array(groups, np.float64), sums)  # (Q, 2, 2, cells, 1 + d)
    guess = {}
    for i in np.flatnonzero(positive).tolist():
        x, scores = whitened[i].double().cpu().numpy(), np.zeros((len(learners.learns), len(cells[i])))
        for q in np.flatnonzero(learners.learns[:, i]):
            without = of_all[q].copy()
            for j in np.flatnonzero(learners.learns[q] & (learners.patient == learners.patient[i])):
                without[half[j], positive[j]] -= sums[j]
            direction, origin = _directions(without)
            scores[q] = ((x - origin[cells[i]]) * direction[cells[i]]).sum(axis=1)
        guess[i] = scores
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


def _cells(projected: Sequence[Tensor], count: int, rng: np.random.Generator) -> list[Indices]:
    """Cell of each patch, of each slide."""
    share = max(1, _CELL_SAMPLE // len(projected))
    sample = [x[torch.from_numpy(rng.permutation(len(x))[:share])].cpu().numpy() for x in projected]
    means = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=int(rng.integers(1 << 31)))
    means.fit(np.concatenate(sample))
    return [means.predict(x.cpu().numpy()).astype(np.int64) for x in projected]


def _halves(learners: Learners, rng: np.random.Generator) -> Indices:
    """0 or 1 for each slide, by patient and about evenly in both classes."""
    half = np.zeros(len(learners.positive), np.int64)
    for positive in (False, True):
        own = rng.permutation(np.unique(learners.patient[learners.positive == positive]))
        half[np.isin(learners.patient, own[::2])] = 1
    return half


def _sums(x: Tensor, cells: Indices, count: int) -> Floats:
    """(N, d) -> (cells, 1 + d): number and sum of a slide's patches in each cell."""
    one_hot = functional.one_hot(torch.from_numpy(cells), count).to(x)
    together: Floats = torch.cat([one_hot.sum(0).unsqueeze(1), one_hot.T @ x], dim=1).double().cpu().numpy()
    return together


def _directions(sums: Floats) -> tuple[Floats, Floats]:
    """(2 halves, 2 classes, cells, 1 + d) -> a direction (cells, d) in each cell, shrunk by how well the halves agree
    on it, and the mean of negative slides' patches (cells, d)."""
    number = sums[..., :1]
    mean = sums[..., 1:] / np.maximum(number, 1)
    a, b = mean[:, 1] - mean[:, 0]  # (cells, d)
    agreement = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)
    agreement -= _BY_CHANCE / np.sqrt(a.shape[1])
    agreement[number.min(axis=(0, 1))[:, 0] < _LEAST_IN_CELL] = 0
    both = sums.sum(axis=0)
    negative, of_positive = both[..., 1:] / np.maximum(both[..., :1], 1)
    difference = of_positive - negative
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    return difference / np.sqrt(length + 1e-12) * agreement.clip(0)[:, None], negative
