"""Cox's proportional hazards on slide vectors, with a ridge penalty: the plain model of survival.

The partial likelihood has exact risk sets over all slides that are given; tied events by Breslow (Biometrics 1974).
Slides with a time of entry are at risk after it alone (left truncation).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # on standardised features
PENALTY = 1e3  # where there is nothing to choose it on
_LARGEST_RISK = 30.0  # of a log hazard, so that none overflows


def log_likelihood(risks: Floats, followed: Floats) -> tuple[float, Floats]:
    """Of log hazards (n,), and its gradient (n,).

    followed (n, 2): time, and 1 for an event, 0 for none by then; (n, 3) with the time of entry.
    """
    time, event = followed[:, 0], followed[:, 1].astype(bool)
    highest = risks.max(initial=0.0)
    hazards = np.exp(risks - highest)
    at_risk = _from(time, hazards, time)[event]  # of each event
    if followed.shape[1] > 2:
        at_risk -= _from(followed[:, 2], hazards, time)[event]
    value = float((risks - highest)[event].sum() - np.log(at_risk).sum())
    share = 1 / at_risk
    passed = share.sum() - _from(time[event], share, np.nextafter(time, np.inf))  # of events up to and with each time
    if followed.shape[1] > 2:
        passed -= share.sum() - _from(time[event], share, np.nextafter(followed[:, 2], np.inf))
    return value, event - hazards * passed


def _from(times: Floats, values: Floats, at: Floats) -> Floats:
    """Sums (m,) of the values (n,) whose times (n,) are no earlier than each of `at` (m,)."""
    order = np.argsort(times, kind="stable")
    sums = np.append(values[order][::-1].cumsum()[::-1], 0.0)
    return np.asarray(sums[np.searchsorted(times[order], at, side="left")])


def fit_cox(vectors: Floats, followed: Floats, held_out: tuple[Floats, Floats]) -> Callable[[Floats], Floats]:
    """Log hazards (n,) for vectors (n, D), by the model of vectors (S, D) and followed (S, 2).

    Its penalty is the one with the highest likelihood of the held-out part, `PENALTY` where no event is there.
    """
    scaler = StandardScaler().fit(vectors)
    _, singular, axes = np.linalg.svd(scaler.transform(vectors), full_matrices=False)
    axes = axes[singular > 1e-9 * max(singular.max(), 1.0)]  # the penalty needs no other direction

    def turned(of: Floats) -> Floats:
        return np.asarray(scaler.transform(of) @ axes.T)

    def risks(weights: Floats, of: Floats) -> Floats:
        return np.asarray(np.clip(turned(of) @ weights, -_LARGEST_RISK, _LARGEST_RISK))

    told = held_out[1][:, 1].any()
    fitted = [_fit(turned(vectors), followed, penalty) for penalty in (PENALTIES if told else (PENALTY,))]
    best = max(fitted, key=lambda w: log_likelihood(risks(w, held_out[0]), held_out[1])[0]) if told else fitted[0]
    return lambda of: risks(best, of)


def _fit(x: Floats, followed: Floats, penalty: float) -> Floats:
    def loss(weights: Floats) -> tuple[float, Floats]:
        value, gradient = log_likelihood(x @ weights, followed)
        return penalty / 2 * float(weights @ weights) - value, penalty * weights - x.T @ gradient

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)


def fit_slope(risks: Floats, followed: Floats, most: float) -> float:
    """By what log hazards (n,) are multiplied, up to `most`: by the partial likelihood, held near 1 by a prior.

    The logarithm's prior is normal with deviation 1. 1 where nothing was seen.
    """
    if not followed[:, 1].any():
        return min(1.0, most)

    def loss(log_slope: float) -> float:
        return 0.5 * log_slope**2 - log_likelihood(np.exp(log_slope) * risks, followed)[0]

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(most)), method="bounded")
    return float(np.exp(found.x))
