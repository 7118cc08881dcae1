"""Tiles of four real slides (TCGA-CRC, CTransPath, 768 dimensions) in disjoint bags of neighbours.

A tissue kind, one of 40 k-means clusters of the slide-centred tiles, is taken out of all bags; half of the bags get
`planted` tiles of it from their own slide, so no slide's stain goes with the label.
"""

from functools import cache

import h5py
import numpy as np
from numpy.typing import NDArray
from real_data import DATA
from sklearn.cluster import KMeans

from few_patches.bags import Bags

KINDS = 40


@cache
def slides() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features and coordinates."""
    found = []
    for path in sorted((DATA / "tcga_crc").glob("*.h5")):
        with h5py.File(path) as file:
            found.append((file["feats"][:].astype(np.float32), file["coords"][:]))
    return found


@cache
def kinds(draw: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Tiles of all slides, centred (N, D), and the kind of each (N,)."""
    centred = np.concatenate([x - x.mean(0) for x, _ in slides()])
    return centred, KMeans(KINDS, n_init=3, random_state=draw).fit_predict(centred)


def plant(planted: int, size: int, draw: int) -> Bags:
    rng = np.random.default_rng(draw)
    of_slide = np.repeat(np.arange(len(slides())), [len(x) for x, _ in slides()])
    _, kind = kinds(draw)
    counts = np.array([np.bincount(kind[of_slide == s], minlength=KINDS) for s in range(len(slides()))])  # (S, KINDS)
    enough = np.flatnonzero((counts >= 2 * planted).all(axis=0))
    rare = int(rng.choice(enough)) if len(enough) else int(counts.min(axis=0).argmax())
    tiles, truths, labels = [], [], []
    for s, (x, coords) in enumerate(slides()):
        own = kind[of_slide == s]
        rest = np.flatnonzero(own != rare)
        rest = rest[np.lexsort((coords[rest, 0], coords[rest, 1]))]
        left = rng.permutation(np.flatnonzero(own == rare))
        count = len(x) // size // 2 * 2
        of_bags = rng.permutation([0, 1] * (count // 2))
        for label, part in zip(of_bags, np.array_split(rest, count), strict=True):
            chosen, truth = part, np.zeros(len(part), bool)
            if label:
                left = np.roll(left, -planted)
                chosen, truth[-planted:] = np.r_[part[:-planted], left[:planted]], True
            order = rng.permutation(len(chosen))
            tiles.append(x[chosen[order]])
            truths.append(truth[order])
        labels.extend(of_bags)
    return Bags(tiles, truths, np.array(labels))
