"""Witness rate: the share of positive-slide patches that are unlike negative-slide patches, from below.

Positive slides are a mixture of patches as in negative slides (share 1 - rate) and others (the witnesses). That is
mixture proportion estimation from positive and unlabelled data (Ramaswamy et al., ICML 2016); the estimator is best bin
estimation (Garg et al., NeurIPS 2021): with scores of a classifier, the share of patches as in negative slides is the
smallest ratio of the two distribution functions, over thresholds at which it is sure enough.

The classifier is a linear discriminant with the covariance of negative patches, fitted without the patients it scores.
As positives are mostly not witnesses, it is refitted to those that look least like negatives; each half of the training
patients chooses those of the other half, so that noise does not confirm itself (cf. (TED)^n, Garg et al.). Patches of a
patient are not independent: certainty of a threshold and of the bound both come from drawing patients.

Any score gives a bound from below: witnesses that it puts among negative patches are not seen, and with a linear
discriminant these can be many, also where all patches differ. So the result says at least how many differ, and nothing
of how many at most. Where positive slides' normal tissue differs, as by a stain, that counts too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.diagnosis.numbers.folds import Parts
from mil.metrics.bootstrap import draw_weights

Floats = NDArray[np.float64]
_PATCHES = 120_000  # in all that the classifier sees
_ROUNDS = 3
_GRID = 200
_SHRINKAGE = 0.05
_FEWEST_BELOW = 0.05  # of negative patches below a threshold that may be chosen
_SURENESS = 1.64  # standard errors that are added when thresholds are compared


@dataclass(frozen=True)
class WitnessRate:
    """seen: the bound itself; at_least: what it exceeds with 95 % certainty, one-sided, over draws of patients.

    by_threshold (3, K): threshold, share below it of negatives, and of positives.
    """

    seen: float
    at_least: float
    by_threshold: Floats


def witness_rate(
    cohort: Cohort,
    positive: int,
    folds: Parts,
    draws: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> WitnessRate:
    """folds: (train, test) positions of slides, by patient, that test all slides. Each slide counts the same."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, 9)))
    features = sampled_patches(cohort, _PATCHES, rng)
    truth = cohort.labels == positive
    scores: list[Floats] = [np.empty(0)] * len(features)
    for k, (train, test) in enumerate(folds):
        direction, centre, spread = _fit(features, truth, cohort.patient_ids, train, rng)
        for i in test:
            scores[i] = ((features[i].float() @ direction).double().numpy() - centre) / spread
        progress((k + 1) / len(folds))
    tested = np.array([i for i, own in enumerate(scores) if len(own)])
    return best_bin([scores[i] for i in tested], truth[tested], cohort.patient_ids[tested], draws, seed)


def sampled_patches(cohort: Cohort, total: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """S of (n, D) float16: all patches, or as many random ones of each slide as make `total`, 16 at least."""
    most = max(16, total // len(cohort.features))
    return [
        own if len(own) <= most else own[torch.from_numpy(np.sort(rng.choice(len(own), most, replace=False)))]
        for own in cohort.features
    ]


def best_bin(
    scores: Sequence[Floats], truth: NDArray[np.bool_], patients: NDArray[np.str_], draws: int, seed: int
) -> WitnessRate:
    """scores: S of (n,), higher is less like a negative slide; truth, patients (S,)."""
    negatives = np.sort(np.concatenate([own for own, true in zip(scores, truth, strict=True) if not true]))
    grid = np.quantile(negatives, np.linspace(_FEWEST_BELOW, 1, _GRID))
    below = np.stack([np.searchsorted(np.sort(own), grid, side="right") / len(own) for own in scores])  # (S, K)
    weights = draw_weights(patients.tolist(), draws, seed)
    halves = _halves(truth, patients, seed)  # a threshold is chosen on the patients of one and judged on the other's
    kappas = [_ratio(below, truth, weights * own) for own in halves]  # (R, K)
    chosen = [(of + _SURENESS * of[1:].std(axis=0)).argmin(axis=1) for of in kappas]
    rows = np.arange(len(weights))
    kappa = (kappas[0][rows, chosen[1]] + kappas[1][rows, chosen[0]]) / 2
    rates = 1 - np.clip(kappa, 0, 1)
    of_positive, of_negative = (below[truth == side].mean(axis=0) for side in (True, False))
    at_least = float(np.percentile(rates[1:], 5))
    return WitnessRate(float(rates[0]), at_least, np.stack([grid, of_negative, of_positive]))


def _halves(truth: NDArray[np.bool_], patients: NDArray[np.str_], seed: int) -> list[NDArray[np.bool_]]:
    """Two masks (S,) of slides, with half of the patients of each kind."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, 10)))
    with_positive = np.unique(patients[truth])
    others = np.setdiff1d(patients, with_positive)
    first = np.isin(patients, [*rng.permutation(with_positive)[::2], *rng.permutation(others)[::2]])
    return [first, ~first]


def _ratio(below: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Share of positives over that of negatives below each threshold: below (S, K), weights (R, S) -> (R, K)."""
    positive, negative = weights * truth, weights * ~truth
    of_positive = positive @ below / np.maximum(positive.sum(axis=1, keepdims=True), 1)
    of_negative = negative @ below / np.maximum(negative.sum(axis=1, keepdims=True), 1)
    return np.where(of_negative > 0, of_positive / np.maximum(of_negative, 1e-9), 1.0)


def _fit(
    features: Sequence[torch.Tensor],
    truth: NDArray[np.bool_],
    patients: NDArray[np.str_],
    train: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, float, float]:
    """Direction (D,), and mean and standard deviation of negative patches along it."""
    negative = [features[i] for i in train if not truth[i]]
    n = sum(len(own) for own in negative)
    mean = torch.stack([own.float().sum(0) for own in negative]).sum(0) / n
    second = torch.zeros(len(mean), len(mean))
    for own in negative:
        centred = own.float() - mean
        second += centred.T @ centred
    covariance = second / n
    size = covariance.diagonal().mean()
    factor = torch.linalg.cholesky(covariance + (_SHRINKAGE * size + 1e-6) * torch.eye(len(mean)))

    def discriminant(positives: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve((positives - mean)[:, None], factor)[:, 0]

    names = rng.permutation(np.unique(patients[train[truth[train]]]))
    half = [torch.cat([features[i] for i in train if truth[i] and patients[i] in set(own)]).float()
            for own in (names[::2], names[1::2]) if len(own)]  # fmt: skip
    if len(half) < 2:
        half = [half[0], half[0]]
    means = [own.mean(0) for own in half]
    for _ in range(_ROUNDS):
        directions = [discriminant(own) for own in means]
        fresh = []
        for own, w in zip(half, reversed(directions), strict=True):  # chosen by the other half
            centre = mean @ w
            z = (own @ w - centre) / (w @ covariance @ w).sqrt()
            share = _rough_share(z)
            least = torch.quantile(z[:: max(1, len(z) // 100_000)], 1 - share)
            fresh.append(own[z >= least].mean(0))
        means = fresh
    direction = discriminant((means[0] + means[1]) / 2)
    spread = float((direction @ covariance @ direction).clamp_min(1e-12).sqrt())
    return direction, float(mean @ direction), spread


def _rough_share(z: torch.Tensor) -> float:
    """Share of patches in excess over a standard normal to the right, at least one in a hundred."""
    median = float(z.median())
    left = float((z < min(median, 0.0)).float().mean())
    expected = 0.5 * (1 + float(torch.erf(torch.tensor(min(median, 0.0) / 2**0.5))))
    return float(np.clip(1 - left / max(expected, 1e-6), 0.01, 0.99))
