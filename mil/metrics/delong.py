"""Standard errors of the AUROC without resampling: DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988).

The AUROC is a mean over pairs of a positive and a negative. Its structural components, one for each case, come from
midranks in O(n log n) (Sun & Xu, IEEE Signal Processing Letters 21, 2014). DeLong's variance takes the cases as
independent; slides of one patient and repeats of one slide are not. So the components are summed within each patient
before their covariance is taken (Obuchowski, Biometrics 53, 1997). With one row a patient that is DeLong's formula
to the last bit of rounding. No library in reach has the clustered form.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]
_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Areas:
    """AUROCs of K scores for the same cases."""

    values: Floats  # (K,)
    covariance: Floats  # (K, K); NaN where a class has fewer than two patients


def areas(scores: Floats, truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> Areas:
    """scores (K, n), truth (n,), patients (n,) -> AUROCs and their covariance. ValueError for a single class."""
    m, n = int(truth.sum()), int((~truth).sum())
    if not m or not n:
        raise ValueError("an AUROC needs both classes")
    ranks = rankdata(scores, axis=1)
    positive = (ranks[:, truth] - rankdata(scores[:, truth], axis=1)) / n  # (K, m): part of negatives below each
    negative = 1 - (ranks[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / m  # (K, n)
    values = positive.mean(axis=1)
    names, of_row = np.unique(patients, return_inverse=True)
    sums = np.zeros((2, len(values), len(names)))
    for components, rows, total in ((positive, of_row[truth], sums[0]), (negative, of_row[~truth], sums[1])):
        np.add.at(total.T, rows, (components - values[:, None]).T)
    with_positive, with_negative = (len(set(of_row[side])) for side in (truth, ~truth))
    s10, s01 = (
        _scaled(total @ total.T, count) for total, count in zip(sums, (with_positive, with_negative), strict=True)
    )
    cross = _scaled(sums[0] @ sums[1].T, len(names))  # 0 unless a patient has both classes
    return Areas(values, s10 / m**2 + s01 / n**2 + (cross + cross.T) / (m * n))


def _scaled(products: Floats, count: int) -> Floats:
    return products * count / (count - 1) if count > 1 else np.full_like(products, np.nan)


def delong_interval(scores: Floats, truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> dict[str, float | None]:
    """AUROC of scores (n,) with its 95 % interval, normal and cut at 0 and 1: value, low, high; None if undefined."""
    if truth.all() or not truth.any():
        return {"value": None, "low": None, "high": None}
    found = areas(scores[None], truth, patients)
    value, variance = float(found.values[0]), float(found.covariance[0, 0])
    if not np.isfinite(variance):
        return {"value": value, "low": None, "high": None}
    half = _Z * np.sqrt(max(variance, 0.0))
    return {"value": value, "low": float(max(0.0, value - half)), "high": float(min(1.0, value + half))}


def delong_p(first: Floats, second: Floats, truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> float:
    """Two-sided p of the hypothesis that scores `first` and `second` (n,) of the same cases have equal AUROC.

    1 where the two never differ; NaN where a class has fewer than two patients.
    """
    found = areas(np.stack([first, second]), truth, patients)
    contrast = np.array([1.0, -1.0])
    difference, variance = contrast @ found.values, contrast @ found.covariance @ contrast
    if not np.isfinite(variance):
        return float("nan")
    if variance <= np.finfo(np.float64).eps:
        return 1.0 if abs(difference) < np.finfo(np.float32).eps else 0.0
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
