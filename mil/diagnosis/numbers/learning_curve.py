"""How AUROC grows with the number of patients, and what twice as many would give.

The probe of mil.diagnosis.numbers.ridge is trained on random subsets of the patients of each training part and judged
on all of the test part. Through the means goes an inverse power law, AUROC(n) = a - b * n ** -c with a <= 1, b >= 0
(Cortes et al., NIPS 1994; Figueroa et al., BMC Medical Informatics 12, 2012). The interval comes from drawing the
judged patients and the subsets again, with the exponent fitted anew in each draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.diagnosis.numbers.folds import Parts, parts_of
from mil.diagnosis.numbers.ridge import kernel, out_of_fold
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import weighted_auroc

Floats = NDArray[np.float64]
_SUBSETS, _SIZES, _DRAWS = 6, 5, 200
_FEWEST = 8  # patients in a subset
_EXPONENTS = np.linspace(0.3, 1.5, 13)


@dataclass(frozen=True)
class LearningCurve:
    """Values of K sizes with intervals; `doubled` is the expectation at twice `patients`."""

    patients: NDArray[np.int64]  # (K,) in training
    auroc: tuple[dict[str, float | None], ...]  # K
    now: dict[str, float | None]  # of the fitted curve at the last size
    doubled: dict[str, float | None]
    fitted_n: Floats  # (M,) patients, up to twice the last size
    fitted: Floats  # (3, M): value, low, high


def learning_curve(
    cohort: Cohort,
    folds: Sequence[Fold],
    means: Floats,
    classes: Sequence[int],
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> LearningCurve | None:
    """means (S, D). None where fewer than three sizes are possible."""
    parts, products = parts_of(folds), kernel(means)
    most = min(len(set(cohort.patient_ids[train])) for train, _ in parts)
    if most <= _FEWEST:
        return None
    sizes = np.unique(np.geomspace(max(_FEWEST, most / 10), most, _SIZES).astype(int))
    if len(sizes) < 3:
        return None
    rng = np.random.default_rng(np.random.SeedSequence((seed, 8)))
    weights = draw_weights(cohort.patient_ids.tolist(), _DRAWS, seed)
    values = np.full((len(sizes), _SUBSETS, 1 + _DRAWS), np.nan)
    for k, size in enumerate(sizes):
        for r in range(_SUBSETS):
            subset = [(_subset(cohort, train, size, rng), test) for train, test in parts]
            values[k, r] = _auroc(cohort, products, subset, classes, weights)
            progress((k * _SUBSETS + r + 1) / (len(sizes) * _SUBSETS))
    picked = np.vstack([np.arange(_SUBSETS), rng.integers(0, _SUBSETS, (_DRAWS, _SUBSETS))])  # (1 + draws, subsets)
    curves = np.stack([values[:, picked[d], d].mean(axis=1) for d in range(1 + _DRAWS)])  # (1 + draws, K)
    at = np.linspace(sizes[0], 2 * sizes[-1], 60)
    fits = np.stack([power_law(sizes.astype(float), curve, at) for curve in curves])
    last = int(np.abs(at - sizes[-1]).argmin())
    bounds = np.nanpercentile(fits[1:], (2.5, 97.5), axis=0)
    return LearningCurve(
        sizes,
        tuple(interval(curves[:, k]) for k in range(len(sizes))),
        interval(fits[:, last]),
        interval(fits[:, -1]),
        at,
        np.vstack([fits[0], bounds]),
    )


def power_law(sizes: Floats, values: Floats, at: Floats) -> Floats:
    """The curve a - b n^-c fitted by least squares to values (K,) at sizes (K,), read off at (M,); NaN if undefined."""
    if not np.isfinite(values).all():
        return np.full(len(at), np.nan)
    best, found = np.inf, np.full(len(at), values.mean())
    for c in _EXPONENTS:
        x = sizes**-c
        spread = ((x - x.mean()) ** 2).sum()
        b = max(0.0, -float(((x - x.mean()) * (values - values.mean())).sum() / spread))
        a = float(values.mean() + b * x.mean())
        if a > 1:  # on the boundary the slope alone is free
            a, b = 1.0, max(0.0, float((x * (1 - values)).sum() / (x**2).sum()))
        error = float(((a - b * x - values) ** 2).sum())
        if error < best - 1e-15:
            best, found = error, a - b * at**-c
    return found


def _subset(cohort: Cohort, train: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Slides of `size` patients of train; the classes keep their shares, at least two patients of each."""
    names, first = np.unique(cohort.patient_ids[train], return_index=True)
    labels = cohort.labels[train][first]
    chosen: list[str] = []
    for c in np.unique(labels):
        own = names[labels == c]
        chosen += rng.permutation(own)[: max(2, round(size * len(own) / len(names)))].tolist()
    return train[np.isin(cohort.patient_ids[train], chosen)]


def _auroc(
    cohort: Cohort,
    products: Floats,
    parts: Parts,
    classes: Sequence[int],
    weights: Floats,
) -> Floats:
    """(1 + draws,): pairs within a fold, each fold by its weight of pairs; a mean over the classes."""
    truths = np.stack([cohort.labels == c for c in classes], axis=1)
    scores = out_of_fold(products, truths.astype(float), cohort.patient_ids, parts)
    each = []
    for c in range(len(classes)):
        wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for _, test in parts:
            own, truth = weights[:, test], truths[test, c]
            count = (own * truth).sum(axis=1) * (own * ~truth).sum(axis=1)
            with np.errstate(invalid="ignore"):
                wins += np.where(count > 0, np.nan_to_num(weighted_auroc(scores[test, c], truth, own)) * count, 0)
            pairs += count
        each.append(np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0))
    return np.asarray(np.nanmean(np.stack(each), axis=0))
