"""Could shuffled labels do as well? Shuffles by patient within folds, and the p values that come of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.diagnosis.numbers.folds import Parts
from mil.diagnosis.numbers.ridge import aurocs_within_folds, out_of_fold

Floats = NDArray[np.float64]


def shuffled_labels(cohort: Cohort, folds: Sequence[Fold], draws: int, seed: int) -> NDArray[np.int64]:
    """(S, 1 + draws) labels: the true ones, then shuffles among the patients of each test part.

    Folds are stratified by the true labels, so only shuffles within a part are as likely as what is (others would make
    chance look worse than it is). All slides of a patient keep one label; where patients carry several, slides are
    shuffled.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, 7)))
    labels = np.repeat(cohort.labels[:, None], 1 + draws, axis=1)
    for fold in folds:
        _, first, of_slide = np.unique(cohort.patient_ids[fold.test], return_index=True, return_inverse=True)
        own = cohort.labels[fold.test]
        if (own[first][of_slide] == own).all():
            labels[fold.test, 1:] = np.stack([rng.permutation(own[first])[of_slide] for _ in range(draws)], axis=1)
        else:
            labels[fold.test, 1:] = np.stack([rng.permutation(own) for _ in range(draws)], axis=1)
    return labels


def macro_aurocs(
    products: Floats, labels: NDArray[np.int64], classes: Sequence[int], patients: NDArray[np.str_], parts: Parts
) -> Floats:
    """AUROC (P,) of the ridge probe for each column of labels (S, P), a mean over `classes` against the rest."""
    each = []
    for c in classes:
        truth = labels == c
        each.append(aurocs_within_folds(out_of_fold(products, truth.astype(float), patients, parts), truth, parts))
    return np.asarray(np.nanmean(np.stack(each), axis=0))


def permutation_p(values: Floats) -> float:
    """One-sided p of values (1 + draws,), the true one first (Phipson & Smyth 2010: it is never 0)."""
    return float((1 + (values[1:] >= values[0]).sum()) / len(values))


def holm(ps: Floats) -> Floats:
    """p values corrected for their number, step down (Holm 1979)."""
    order = np.argsort(ps)
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1))
    return np.minimum(corrected, 1)
