"""Iterative stratification: parts of whole patients that hold their share of every label of several targets.

Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011: the label that fewest of
those left have is dealt out first, each to the part that most lacks it, else to the one that lacks most in all. There
it is examples that are dealt out; here it is patients, with all labels of their slides.
"""

import numpy as np
from numpy.typing import NDArray


def iterative_parts(
    labels: NDArray[np.bool_], patients: NDArray[np.str_], parts: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Part (n,), from 0, of each of n slides. labels (n, L): each slide has one at least; patients (n,)."""
    names, of_slide = np.unique(patients, return_inverse=True)
    counts = np.zeros((len(names), labels.shape[1]))  # (P, L) slides
    np.add.at(counts, of_slide, labels)
    lacking = np.tile(counts.sum(axis=0) / parts, (parts, 1))  # (K, L) slides that a part still wants
    shuffled, part = rng.permutation(len(names)), np.full(len(names), -1)
    while (left := part < 0).any():
        bearers = (counts[left] > 0).sum(axis=0)  # (L,) patients
        rarest = int(np.where(bearers, bearers, len(names) + 1).argmin())
        for patient in shuffled[left[shuffled] & (counts[shuffled, rarest] > 0)]:
            order = np.lexsort((rng.random(parts), lacking.sum(axis=1), lacking[:, rarest]))
            part[patient] = order[-1]
            lacking[order[-1]] -= counts[patient]
    return part[of_slide]
