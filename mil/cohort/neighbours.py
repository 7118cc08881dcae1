"""Pairs of points that lie close together, among very many in some twenty dimensions, where a k-d tree alone is slow.

In so many dimensions the tree looks at a part of all points for each one, so that its cost is nearly quadratic. Points
are therefore put into boxes of a few random grids first (locality-sensitive hashing, Datar et al. 2004), and a tree
looks within each box. Two close points share a box with a chance below 1, the higher the closer they are: it pays where
many points tell the same, as the extreme patches of a slide do.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

TOGETHER = 2000  # points, up to which one tree has them all
_GRIDS = 2
_CELL = 2.0  # sides of a box, in radii
_AXES = 18  # of a grid


def close_pairs(
    points: NDArray[np.float64], radius: float, crowd: int, rng: np.random.Generator
) -> tuple[set[tuple[int, int]], NDArray[np.bool_]]:
    """(S, Q) -> pairs i < j at most `radius` apart, and of each point (S,) whether it is in a crowd.

    A crowd is more than `crowd` points that close to one, itself among them; its points are in no pair.
    """
    crowded = np.zeros(len(points), bool)
    pairs: set[tuple[int, int]] = set()
    for box in _boxes(points, radius, rng):
        distances, near = KDTree(points[box]).query(points[box], k=crowd + 1, distance_upper_bound=radius)
        crowded[box[np.isfinite(distances[:, -1])]] = True
        first, rank = np.nonzero(np.isfinite(distances))
        i, j = box[first], box[near[first, rank]]
        pairs.update(zip(i[i < j].tolist(), j[i < j].tolist(), strict=True))
    return {(i, j) for i, j in pairs if not crowded[i] and not crowded[j]}, crowded


def _boxes(points: NDArray[np.float64], radius: float, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Groups of at least two points, whose positions rise."""
    if len(points) <= TOGETHER:
        if len(points) > 1:
            yield np.arange(len(points))
        return
    for _ in range(_GRIDS):
        axes = rng.permutation(points.shape[1])[:_AXES]
        cells = np.floor(points[:, axes] / (_CELL * radius) + rng.random(len(axes))).astype(np.int64)
        keys = cells @ rng.integers(1, 2**62, len(axes))  # overflow is as good as any other hash
        order = np.argsort(keys, kind="stable")
        for box in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if len(box) > 1:
                yield box
