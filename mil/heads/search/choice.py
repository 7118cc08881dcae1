"""Which candidate's scores tell slides apart best, by the log loss of a logistic regression on each."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mil.heads.search.learners import Floats
from mil.heads.search.refinement import TOPS

_STEPS, _LONGEST_STEP = 50, 1.0  # of Newton's method; steps beyond would overshoot where scores set classes apart
_NO_EFFECT = 1e-3  # slope where nothing was found


class Choice(NamedTuple):
    """Log odds of a slide = slope * mean of the top patch scores + intercept."""

    loss: float
    candidate: int
    top: int
    slope: float
    intercept: float


def choose(scores: Floats, positive: NDArray[np.bool_]) -> Choice:
    """scores (S, TOPS, C): the candidate and number of top patches with the lowest log loss."""
    tops, candidates = scores.shape[1:]
    values = scores.transpose(0, 2, 1).reshape(len(scores), candidates * tops)
    scale = values.std(axis=0)
    scale[scale == 0] = 1
    slopes, intercepts, losses = logistic_regressions(values / scale, positive)
    losses[slopes <= 0] = np.inf
    best = int(losses.argmin())
    if not losses[best] < math.log(2) - 1e-9:
        return Choice(math.log(2), 0, TOPS[0], _NO_EFFECT, 0.0)  # nothing was learned, whatever is put first
    slope = float(slopes[best] / scale[best])
    return Choice(float(losses[best]), best // tops, TOPS[best % tops], slope, float(intercepts[best]))


def logistic_regressions(x: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """x (S, M), positive (S,): slope, intercept and mean log loss (M,) of one regression on each column.

    Classes are balanced, and a ridge of half the square of the slope is added to the sum over slides.
    """
    weights = np.where(positive, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))[:, None]
    centres = x.mean(axis=0)  # top scores lie many deviations from 0, where limited steps would not get to the minimum
    x = x - centres
    slopes, intercepts = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _ in range(_STEPS):
        odds = expit(slopes * x + intercepts)
        residuals, curvatures = weights * (odds - positive[:, None]), weights * odds * (1 - odds)
        gradient = np.stack([(residuals * x).sum(0) + slopes, residuals.sum(0)])
        mixed = (curvatures * x).sum(0)
        of_slope, of_intercept = (curvatures * x**2).sum(0) + 1, curvatures.sum(0) + 1e-9
        steps = np.stack(
            [of_intercept * gradient[0] - mixed * gradient[1], of_slope * gradient[1] - mixed * gradient[0]]
        )
        steps = (steps / (of_slope * of_intercept - mixed**2)).clip(-_LONGEST_STEP, _LONGEST_STEP)
        slopes, intercepts = slopes - steps[0], intercepts - steps[1]
        if np.abs(steps).max() < 1e-9:
            break
    log_odds = slopes * x + intercepts
    losses: Floats = (weights * np.logaddexp(0, np.where(positive[:, None], -log_odds, log_odds))).mean(axis=0)
    return slopes, intercepts - slopes * centres, losses
