"""Several models as one, weighted by what each says of slides that it was not fitted to.

Stacking (Wolpert, "Stacked generalization", Neural Networks 1992): each model is calibrated on its cross-fitted
answers; the weights of their log-odds are never negative (Breiman, "Stacked regressions", Machine Learning 1996) and
are held near equal ones by a normal prior, so that few slides choose nothing and many choose the better models. All of
it happens within the training part of a fold: `--head auto` weighs heads so, `bag-stats` its classifiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from mil.tasks.calibration import class_shares, fit_calibration

Floats = NDArray[np.float64]
_LARGEST = 3.0
_PARTS = 5  # of the cross-fit of the weights
_SD = 2.0  # of the prior, in equal weights; one and four were worse on generated cohorts


@dataclass(frozen=True)
class Stacked:
    """Logits of M heads (M, n, C) -> those of the stack: Σ_m factors_m logits_m + offset, as if classes were equal."""

    weights: Floats  # (M,) of calibrated log-odds
    factors: Floats  # (M,)
    offset: Floats  # (C,)

    def logits(self, of_heads: Floats) -> Floats:
        return np.asarray(np.tensordot(self.factors, of_heads, axes=1) + self.offset)


def stack(answers: Sequence[Floats], labels: NDArray[np.int64]) -> tuple[Stacked, Floats]:
    """The stack, and logits (n, C) of each slide by one that was fitted without it and a fifth of the others.

    answers: M cross-fitted probabilities (n, C) of the slides with labels (n,), which hold all classes. Calibrated on
    what it says of slides that its weights were fitted to, a stack would be too sure; where a class has a single slide
    there is nothing else.
    """
    stacked, logits = _fitted(answers, labels), np.stack([log_probabilities(of) for of in answers])
    parts = np.empty_like(labels)
    for c, count in enumerate(np.bincount(labels)):
        parts[labels == c] = np.arange(count) % _PARTS
    if np.bincount(labels).min() < 2:
        return stacked, stacked.logits(logits)
    held_out = np.empty_like(answers[0])
    for part in np.unique(parts):
        own = parts == part
        held_out[own] = _fitted([of[~own] for of in answers], labels[~own]).logits(logits[:, own])
    return stacked, held_out


def _fitted(answers: Sequence[Floats], labels: NDArray[np.int64]) -> Stacked:
    heads, classes = len(answers), answers[0].shape[1]
    shares = class_shares(labels, classes)
    prior = np.log(classes * shares)
    fitted = [fit_calibration(of, labels, shares) for of in answers]
    temperatures, offsets = np.array([t for t, _ in fitted]), np.stack([bias - prior for _, bias in fitted])
    logits = np.stack([log_probabilities(of) for of in answers])  # (M, n, C)
    balanced = logits / temperatures[:, None, None] + offsets[:, None]
    own = np.arange(len(labels)), labels

    def loss(weights: Floats) -> float:
        likelihood = log_softmax(np.tensordot(weights, balanced, axes=1) + prior, axis=1)[own].sum()
        return float(0.5 * np.square((weights * heads - 1) / _SD).sum() - likelihood)

    start = np.full(heads, 1 / heads)
    weights = minimize(loss, start, bounds=[(0.0, _LARGEST)] * heads, method="L-BFGS-B").x
    return Stacked(weights, weights / temperatures, weights @ offsets)


def log_probabilities(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)))
