"""Gaussian kinds in 768 dimensions that vary along each axis as real tiles do, between kinds and within them.

The axes are those of the slide-centred tiles of `tcga`, and variances along them are split into what lies between 40
kinds and within (one-way analysis of variance). A bag mixes its kinds in its own proportions (Dirichlet 2) and is
shifted by 0.3 deviations of a patch along each axis; positive bags have patches of one further kind.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from few_patches import tcga
from few_patches.bags import Bags

COUNT, SHIFT = 64, 0.3
Floats = NDArray[np.float64]


@cache
def _spectrum() -> tuple[Floats, Floats]:
    """Variances (D,) along the principal axes, between kinds and within."""
    x, kind = tcga.kinds(0)
    along = x.astype(np.float64) @ np.linalg.eigh(np.cov(x.T))[1]
    sizes = np.bincount(kind)
    means = np.stack([along[kind == k].mean(0) for k in range(len(sizes))])
    within = ((along - means[kind]) ** 2).sum(0) / (len(x) - len(sizes))
    of_means = (sizes[:, None] * (means - along.mean(0)) ** 2).sum(0) / (len(sizes) - 1)
    return ((of_means - within) / sizes.mean()).clip(0), within


def make(planted: int, size: int, draw: int) -> Bags:
    rng, (between, within) = np.random.default_rng(draw), _spectrum()
    centres = np.sqrt(between) * rng.standard_normal((tcga.KINDS + 1, len(between)))
    labels, tiles = np.arange(COUNT) % 2, []
    rare = [np.arange(size) < planted * label for label in labels]
    for truth in rare:
        kind = rng.choice(tcga.KINDS, size, p=rng.dirichlet(np.full(tcga.KINDS, 2.0)))
        kind[truth] = tcga.KINDS
        shift = SHIFT * np.sqrt(between + within) * rng.standard_normal(len(between))
        x = centres[kind] + np.sqrt(within) * rng.standard_normal((size, len(within))) + shift
        tiles.append(x.astype(np.float32))
    return Bags(tiles, rare, labels)
