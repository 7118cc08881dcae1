"""The leakage audit: is one slide, under whatever id, in two parts of a split? It runs before any training.

Three signs, from sure to likely:
1. the same slide file, by the fingerprint that feature files carry;
2. the same patches, by the digest of the patch store (for files that have no fingerprint);
3. near-identical features: however a slide was renamed, rounded, shuffled or tiled again on the same grid.

For the third, every slide is sketched by the patches that lie farthest along a few fixed random directions, both ways.
Two slides with mostly the same patches have mostly the same extreme patches, in whatever order they are stored (as in
MinHash, Broder 1997, with projections for hash functions). Sketches are compared by their projections, see
mil.cohort.neighbours, and what looks alike by the full features. The cost is one product of all features with a (D, 8)
matrix, and a search that grows little faster than the number of slides.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.feature_file import UNKNOWN
from mil.cohort.cohort import Cohort
from mil.cohort.neighbours import close_pairs
from mil.cohort.splits import Fold
from mil.pages.words import counted
from tiling.jobs.errors import RequestError

_DIRECTIONS = 8
_SAMPLED_SLIDES, _SAMPLED_PATCHES = 1500, 64  # at most, and of each of these, for the scale of the features
_COORDINATES = 24  # of a patch in the search for candidates
_TOLERANCE = 0.1  # largest distance of equal patches, as part of their distance from the mean patch
_SHARE = 0.5  # least part of the sketch's patches that must be equal
_CROWD = 8  # a patch that more slides have in common (glass, ink) says nothing
_SHOWN_PAIRS = 8
Pair = tuple[int, int]


def audit(cohort: Cohort, folds: Sequence[Fold]) -> list[str]:
    """Warnings about slides that are there twice; RequestError if such a pair is in two parts of a fold."""
    found = same_slides(cohort)
    apart = {
        pair: sign
        for pair, sign in found.items()
        if any(_parted(cohort.bags_of(np.array(pair)), fold) for fold in folds)
    }
    if apart:
        lines = [f"{cohort.slide_ids[i]} and {cohort.slide_ids[j]}: {sign}" for (i, j), sign in apart.items()]
        more = [f"… and {len(lines) - _SHOWN_PAIRS} more"] if len(lines) > _SHOWN_PAIRS else []
        raise RequestError(
            "\n  ".join(
                [
                    f"one slide under two ids stands in two parts of a split ({counted(len(lines), 'pair')}), which "
                    "would make the result look better than it is. Leave one of each pair out, or give both the same "
                    "patient_id (and the same 'split'):",
                    *lines[:_SHOWN_PAIRS],
                    *more,
                ]
            )
        )
    if not found:
        return []
    pairs = [f"{cohort.slide_ids[i]} and {cohort.slide_ids[j]}" for i, j in found]
    shown = ", ".join(pairs[:_SHOWN_PAIRS]) + (", …" if len(pairs) > _SHOWN_PAIRS else "")
    return [f"slides that are there twice, and count twice: {counted(len(pairs), 'pair')}: {shown}"]


def _parted(pair: NDArray[np.int64], fold: Fold) -> bool:
    places = [[name for name in ("train", "val", "test") if i in getattr(fold, name)] for i in pair]
    return all(places) and places[0] != places[1]


def same_slides(cohort: Cohort) -> dict[Pair, str]:
    """Pairs of positions of slides that are one and the same, with what shows it."""
    found: dict[Pair, str] = {}
    for pair, share in near_identical(cohort.slide_features()).items():
        found[pair] = f"near-identical features ({share:.0%} of the compared patches)"
    digests = [info.store_digest for info in cohort.infos]
    for pair in _equal_pairs("" if digest == UNKNOWN else digest for digest in digests):
        found[pair] = "the same patches"
    for pair in _equal_pairs(info.slide_fingerprint for info in cohort.infos):
        found[pair] = "the same slide file"
    return dict(sorted(found.items()))


def _equal_pairs(keys: Iterable[str]) -> list[Pair]:
    """Neighbours in each group of equal keys; empty keys are nobody's."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key:
            groups[key].append(i)
    return [pair for group in groups.values() for pair in pairwise(group)]


def near_identical(features: Sequence[Tensor]) -> dict[Pair, float]:
    """S of (N, D), N >= 1 -> pairs that share most of their extreme patches, with the part that they share."""
    mean, scale = _scale(features)
    random = torch.from_numpy(np.random.default_rng(0).normal(size=(len(mean), _COORDINATES))).float()
    weights = random / scale.unsqueeze(1)  # (D, Q)
    picked = np.empty((len(features), 2 * _DIRECTIONS), np.int64)  # (S, 2J) rows of the extreme patches
    extremes = np.empty((len(features), 2 * _DIRECTIONS, _COORDINATES), np.float32)  # their projections
    for i, slide in enumerate(features):
        projected = slide.float() @ weights[:, :_DIRECTIONS]  # (N, J)
        rows = torch.cat([projected.argmax(0), projected.argmin(0)])
        picked[i], extremes[i] = rows.numpy(), ((slide[rows].float() - mean) @ weights).numpy()
    matches: dict[Pair, tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    candidates, crowded = _alike(extremes)
    for i, j in candidates:
        for k in np.flatnonzero(~(crowded[i] | crowded[j])):
            a, b = picked[i, k], picked[j, k]
            if _equal(features[i][a], features[j][b], mean, scale):
                matches[i, j][0].add(int(a))
                matches[i, j][1].add(int(b))
    distinct = [len(set(rows.tolist())) for rows in picked]
    shares = {(i, j): min(len(of_i) / distinct[i], len(of_j) / distinct[j]) for (i, j), (of_i, of_j) in matches.items()}
    return {pair: share for pair, share in sorted(shares.items()) if share >= _SHARE}


def _scale(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of evenly spaced patches of such slides; constant features count as 1."""
    sampled = (features[i] for i in range(0, len(features), -(-len(features) // _SAMPLED_SLIDES)))
    # copies, since a view would hold the whole slide
    sample = torch.cat([slide[:: -(-len(slide) // _SAMPLED_PATCHES)].clone() for slide in sampled]).float()
    std = sample.std(0, unbiased=False)
    return sample.mean(0), torch.where(std > 1e-6, std, 1.0)


def _alike(extremes: NDArray[np.float32]) -> tuple[set[Pair], NDArray[np.bool_]]:
    """Projections (S, 2J, Q) of extreme patches -> candidates, and of each patch (S, 2J) whether it is in a crowd.

    A pair is one where any of its patches are twice the tolerance apart at most, and not in a crowd.
    """
    rng, found = np.random.default_rng(0), set()
    crowded = np.zeros(extremes.shape[:2], bool)
    for k in range(extremes.shape[1]):
        size = np.maximum(np.linalg.norm(extremes[:, k], axis=1, keepdims=True), 1e-6)
        points = np.hstack([extremes[:, k] / size, np.log(size)])
        pairs, crowded[:, k] = close_pairs(points.astype(np.float64), 2 * _TOLERANCE, _CROWD, rng)
        found |= pairs
    return found, crowded


def _equal(a: Tensor, b: Tensor, mean: Tensor, scale: Tensor) -> bool:
    """Whether two patches (D,) differ by less than the tolerance."""
    first, second = (a.float() - mean) / scale, (b.float() - mean) / scale
    return bool((first - second).norm() <= _TOLERANCE * torch.minimum(first.norm(), second.norm()))
