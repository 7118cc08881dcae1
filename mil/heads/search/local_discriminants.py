"""First guesses by local discriminants: in which direction positive slides' patches differ from negative ones nearby.

Patches are divided into k-means cells, and each slide's offset, the mean of its patches' residuals to their cells'
centres, is taken off (the idea of Harmony, Korsunsky et al., Nature Methods 2019): it is larger than what a few patches
move. A cell's direction is the difference of the means of both classes, as far as two halves of the slides agree on it.
Few patches hardly move a mean, but they are a larger part of the patches that lie far along such a direction: so the
difference of means is asked again among those, and again further out. Each slide is judged by directions that were
learned without its patient. This needs many patches, and finds kinds that overlap with normal ones.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional

from mil.heads.search.learners import Floats, Guess, Indices, Learners

_CELLS, _PATCHES_A_CELL = (16, 48, 128), 500  # as many cells as there are patches for
_CELL_SAMPLE = 100_000
_ALIGN_STEPS = 3
_ALIGN_SHRINKAGE = 50  # patches; the offset of a slide of N is taken off by the part N / (N + this)
_BEYOND = (-np.inf, 1.3, 2.0)  # deviations from the negative mean, along the direction, of the patches that are asked
_ENOUGH_IN_CELL = 5  # positive patches in each half; negative ones, for a mean of their own
_BY_CHANCE = 2.0  # deviations of the cosine of two directions without anything in common
_LITTLE = 0.01  # agreement where there is none, so that patches still have an order


def cell_counts(patches: int) -> list[int]:
    """How finely patches may be divided: the more, the purer the cells, and the fewer patches each has."""
    return [count for count in _CELLS if count * _PATCHES_A_CELL <= patches] or [max(1, patches // _PATCHES_A_CELL)]


def local_discriminants(
    projected: Sequence[Tensor], scale: Tensor, count: int, learners: Learners, rng: np.random.Generator
) -> Guess:
    """projected: S of (N, d) float32, in cells as they are; scale (d,) makes directions out of them comparable.

    Of all slides: each patch's place along its own cell's direction, in deviations, times the agreement on it.
    """
    offsets, cells = _aligned(projected, count, rng)
    whitened = [(x - offset) / scale for x, offset in zip(projected, offsets, strict=True)]
    half = _halves(learners, rng)
    origins: list[Floats] = []
    places = [np.full((len(learners.learns), len(x)), np.inf, np.float32) for x in projected]
    for beyond in _BEYOND:
        sums = [_sums(x, of, at > beyond, count) for x, of, at in zip(whitened, cells, places, strict=True)]
        agreements = []
        for i, known in enumerate(_without_each_patient(sums, half, learners)):
            if beyond == _BEYOND[0]:
                origins.append(_negative_means(known.sum(axis=1)[:, 0], _mean(known.sum(axis=(1, 3)))[:, :1]))
            direction, agreement = _directions(known, origins[i])
            constant = (direction * origins[i]).sum(axis=-1)[:, cells[i]]  # (Q, N)
            own = torch.from_numpy(direction).to(whitened[i])[:, torch.from_numpy(cells[i])]  # (Q, N, d)
            places[i] = ((own * whitened[i]).sum(-1).cpu().numpy() - constant).astype(np.float32)
            agreements.append(agreement)
        deviations = _deviations(places, cells, count, learners)
        places = [at / deviations[:, of] for at, of in zip(places, cells, strict=True)]
    judged = zip(places, agreements, cells, strict=True)
    return {i: at.astype(np.float64) * agreement[:, of] for i, (at, agreement, of) in enumerate(judged)}


def _aligned(projected: Sequence[Tensor], count: int, rng: np.random.Generator) -> tuple[list[Tensor], list[Indices]]:
    """Each slide's offset (d,), and the cell of each of its patches (N,) without it."""
    share = max(1, _CELL_SAMPLE // len(projected))
    sample = [x[torch.from_numpy(rng.permutation(len(x))[:share])].cpu().numpy() for x in projected]
    means = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=int(rng.integers(1 << 31)))
    centres = torch.from_numpy(means.fit(np.concatenate(sample)).cluster_centers_).to(projected[0])
    norms = centres.square().sum(1) / 2
    offsets, cells = [], []
    for x in projected:
        own, offset, products = len(x) / (len(x) + _ALIGN_SHRINKAGE), torch.zeros_like(x[0]), x @ centres.T
        for _ in range(_ALIGN_STEPS):
            nearest = (products - norms - centres @ offset).argmax(1)
            offset = own * (x.mean(0) - centres[nearest].mean(0))
        offsets.append(offset)
        cells.append((products - norms - centres @ offset).argmax(1).cpu().numpy())
    return offsets, cells


def _halves(learners: Learners, rng: np.random.Generator) -> Indices:
    """0 or 1 for each slide, by patient and about evenly in both classes."""
    half = np.zeros(len(learners.positive), np.int64)
    for positive in (False, True):
        own = rng.permutation(np.unique(learners.patient[learners.positive == positive]))
        half[np.isin(learners.patient, own[::2])] = 1
    return half


def _sums(x: Tensor, cells: Indices, asked: NDArray[np.bool_], count: int) -> NDArray[np.float32]:
    """(N, d), (N,), (Q, N) -> (Q, cells, 1 + d): number and sum of a slide's patches that are asked, in each cell."""
    q, n = np.nonzero(asked)
    sums = torch.zeros(len(asked) * count, 1 + x.shape[1], device=x.device)
    rows = functional.pad(x, (1, 0), value=1.0)[torch.from_numpy(n)]
    sums.index_add_(0, torch.from_numpy(q * count + cells[n]).to(x.device), rows)
    of_cells: NDArray[np.float32] = sums.view(len(asked), count, -1).cpu().numpy()
    return of_cells


def _without_each_patient(sums: Sequence[NDArray[np.float32]], half: Indices, learners: Learners) -> Iterator[Floats]:
    """For each slide (Q, 2 halves, 2 classes, cells, 1 + d): what the learners know without its patient."""
    positive = learners.positive.astype(np.int64)
    of_all = np.zeros((len(learners.learns), 2, 2, *sums[0].shape[1:]))
    for i, own in enumerate(sums):
        of_all[learners.learns[:, i], half[i], positive[i]] += own[learners.learns[:, i]]
    for i in range(len(sums)):
        known = of_all.copy()
        for j in np.flatnonzero(learners.patient == learners.patient[i]).tolist():
            known[learners.learns[:, j], half[j], positive[j]] -= sums[j][learners.learns[:, j]]
        yield known


def _directions(known: Floats, origins: Floats) -> tuple[Floats, Floats]:
    """(Q, 2 halves, 2 classes, cells, 1 + d) -> unit directions (Q, cells, d), agreement of halves on them (Q, cells).

    origins (Q, cells, d): where negative patches are taken to be as long as there are few.
    """
    a, b = (_difference(known[:, half], origins) for half in (0, 1))
    agreement = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-12)
    agreement = (agreement - _BY_CHANCE / np.sqrt(a.shape[-1])).clip(_LITTLE)
    agreement[known[:, :, 1, :, 0].min(axis=1) < _ENOUGH_IN_CELL] = _LITTLE
    difference = _difference(known.sum(axis=1), origins)
    return difference / (np.linalg.norm(difference, axis=-1, keepdims=True) + 1e-12), agreement


def _difference(known: Floats, origins: Floats) -> Floats:
    """(Q, 2 classes, cells, 1 + d) -> (Q, cells, d)"""
    return _mean(known[:, 1]) - _negative_means(known[:, 0], origins)


def _negative_means(sums: Floats, expected: Floats) -> Floats:
    """(Q, cells, 1 + d) -> (Q, cells, d), with some patches more that are as expected."""
    means: Floats = (sums[..., 1:] + _ENOUGH_IN_CELL * expected) / (sums[..., :1] + _ENOUGH_IN_CELL)
    return means


def _mean(sums: Floats) -> Floats:
    """(…, 1 + d) -> (…, d)"""
    means: Floats = sums[..., 1:] / np.maximum(sums[..., :1], 1)
    return means


def _deviations(
    places: Sequence[NDArray[np.float32]], cells: Sequence[Indices], count: int, learners: Learners
) -> NDArray[np.float32]:
    """Standard deviation (Q, cells) of places (Q, N) in each cell, over the slides that a learner learns from."""
    powers = np.zeros((3, len(learners.learns), count))
    for i, (at, of) in enumerate(zip(places, cells, strict=True)):
        for q in np.flatnonzero(learners.learns[:, i]):
            powers[:, q] += [np.bincount(of, at[q].astype(np.float64) ** power, count) for power in range(3)]
    number, first, second = powers[0].clip(1), powers[1], powers[2]
    variance: Floats = (second / number - (first / number) ** 2).clip(1e-12)
    return np.sqrt(variance, dtype=np.float64).astype(np.float32)
