"""A linear probe in closed form, fast enough for thousands of shuffled labels on the same folds.

Ridge regression on indicators of the classes, in its dual form: scores of the test part are a fixed matrix times the
labels of the train part, so all shuffles are one product. The penalty of each column is the one with the lowest squared
error over inner folds by patient (nested, test labels are never used).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.model_selection import GroupKFold

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold

Floats = NDArray[np.float64]
_PENALTIES = (0.01, 0.1, 1.0, 10.0)  # times the mean of the kernel's diagonal
_INNER = 4


def kernel(vectors: Floats) -> Floats:
    """(S, D) -> (S, S) inner products of standardised vectors; a constant feature counts as 0. No label is used."""
    std = vectors.std(axis=0)
    scaled = (vectors - vectors.mean(axis=0)) / np.where(std > 1e-9, std, np.inf)
    return np.asarray(scaled @ scaled.T)


def out_of_fold(
    products: Floats, targets: Floats, patients: NDArray[np.str_], folds: Sequence[tuple[NDArray[np.int64], ...]]
) -> Floats:
    """Scores (S, P) of targets (S, P), by models that saw neither the slide nor its patient; NaN where never tested.

    products: (S, S) from `kernel`; folds: (train, test) positions.
    """
    scores = np.full(targets.shape, np.nan)
    for train, test in folds:
        errors = np.zeros((len(_PENALTIES), targets.shape[1]))
        parts = min(_INNER, len(set(patients[train])))
        for fitted, held in GroupKFold(parts).split(train, groups=patients[train]):
            for p, own in enumerate(_predict(products, targets, train[fitted], train[held])):
                errors[p] += ((own - targets[train[held]]) ** 2).sum(axis=0)
        best = errors.argmin(axis=0)
        predicted = np.stack(list(_predict(products, targets, train, test)))
        scores[test] = predicted[best, :, np.arange(targets.shape[1])].T
    return scores


def _predict(products: Floats, targets: Floats, train: NDArray[np.int64], test: NDArray[np.int64]) -> list[Floats]:
    """Scores (test, P) for each penalty; the intercept is not penalised (everything is centred on train)."""
    inner, across = products[np.ix_(train, train)], products[np.ix_(test, train)]
    row = inner.mean(axis=0)
    centred = inner - row - row[:, None] + row.mean()
    across = across - across.mean(axis=1, keepdims=True) - row + row.mean()
    values, vectors = np.linalg.eigh(centred)
    values = np.maximum(values, 0)
    mean = targets[train].mean(axis=0)
    turned, across = vectors.T @ (targets[train] - mean), across @ vectors
    size = max(float(values.sum() / len(train)), 1e-12)
    return [across @ (turned / (values + penalty * size)[:, None]) + mean for penalty in _PENALTIES]


def aurocs_within_folds(
    scores: Floats, truth: NDArray[np.bool_], folds: Sequence[tuple[NDArray[np.int64], ...]]
) -> Floats:
    """AUROC (P,) of scores (S, P) for truth (S, P) over pairs that the same model judged; ties count one half."""
    wins, pairs = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for _, test in folds:
        ranks = rankdata(scores[test], axis=0)
        positives = truth[test].sum(axis=0)
        wins += (ranks * truth[test]).sum(axis=0) - positives * (positives + 1) / 2
        pairs += positives * (len(test) - positives)
    return np.asarray(np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def parts_of(folds: Sequence[Fold]) -> list[tuple[NDArray[np.int64], ...]]:
    """(train and val, test) of each fold: the probe chooses its penalty inside."""
    return [(np.union1d(fold.train, fold.val), fold.test) for fold in folds]


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
    products: Floats,
    labels: NDArray[np.int64],
    classes: Sequence[int],
    patients: NDArray[np.str_],
    folds: Sequence[tuple[NDArray[np.int64], ...]],
) -> Floats:
    """AUROC (P,) of the probe for each column of labels (S, P), a mean over `classes` against the rest."""
    each = []
    for c in classes:
        truth = labels == c
        each.append(aurocs_within_folds(out_of_fold(products, truth.astype(float), patients, folds), truth, folds))
    return np.asarray(np.nanmean(np.stack(each), axis=0))


def permutation_p(values: Floats) -> float:
    """One-sided p of values (1 + draws,), the true one first (Phipson & Smyth 2010: it is never 0)."""
    return float((1 + (values[1:] >= values[0]).sum()) / len(values))
