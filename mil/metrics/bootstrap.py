"""95 % intervals from a bootstrap over patients: by percentiles (Efron 1979), or studentised (Hall 1988).

A draw gives every patient a multiplicity; all slides of the patient carry it as their weight. Row 0 of the
weights is 1 for everyone: the value itself. So each figure is one array expression over (1 + draws, n).

Out-of-fold predictions stay as they are and no model is trained again: the intervals are those of these models, and
what another training set, split or seed would change is not in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = dict[str, float | None]  # value, low, high
PERCENTILES = (2.5, 97.5)
_NO_ERROR = 1e-9  # on a scale; rounding


@dataclass(frozen=True)
class Bootstrap:
    """How often patients are drawn, and by which seed."""

    draws: int = 2000
    seed: int = 0


def draw_weights(patients: Sequence[str], draws: int, seed: int) -> Floats:
    """Weights (1 + draws, n): ones, then for each draw the multiplicity of the patient of each of n rows."""
    names, of_row = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
    multiplicity = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.vstack([np.ones(len(of_row)), multiplicity[:, of_row]])


def interval(values: Floats) -> Interval:
    """values (1 + draws,), the figure itself first -> its percentile interval over the draws that define it."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(drawn, PERCENTILES)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Scale:
    """One on which the error of a figure depends little on the figure itself."""

    to: Callable[[Floats], Floats]
    back: Callable[[Floats], Floats]


LOGARITHM = Scale(np.log, np.exp)
LOGARITHM_OF_SQUARE = Scale(lambda root: 2 * np.log(root), lambda log: np.exp(log / 2))
FISHERS_Z = Scale(np.arctanh, np.tanh)


def studentised_interval(values: Floats, errors: Floats, scale: Scale, correction: float = 1.0) -> Interval:
    """As `interval`, but symmetric on a scale: Hall, "On symmetric bootstrap confidence intervals", JRSS B 50, 1988.

    errors (1 + draws,) are standard errors on that scale, of each draw by itself. A draw without one is infinitely far
    from the figure; where more than one in twenty is, the percentile interval stands. correction: of a logarithm, the c
    of Bonett, "Approximate confidence interval for standard deviation of nonnormal distributions", 2006.
    """
    defined = np.isfinite(values[1:])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = scale.to(values)
        far = np.abs(moved[1:] - moved[0]) / errors[1:]
        far = np.where(np.isfinite(far) & (errors[1:] > _NO_ERROR), far, np.inf)[defined]
        reach = np.percentile(far, 95, method="higher") * errors[0] * correction if len(far) else np.nan
        low, high = scale.back(moved[0] + np.log(correction) + np.array([-reach, reach]))
    if not np.isfinite([reach, low, high]).all():
        return interval(values)
    return {"value": float(values[0]), "low": float(min(low, values[0])), "high": float(high)}


def clustered_errors(influence: Floats, weights: Floats, patients: Sequence[str]) -> Floats:
    """Standard errors (R,) of a figure under weights (R, n), on which each row has this influence (R, n).

    The influence sums to 0 over a draw. Rows of a patient go together, as they are drawn: their sums count.
    """
    _, first, of_row = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    of_patient = np.add.reduceat(influence[:, order], np.searchsorted(of_row[order], np.arange(len(first))), axis=1)
    return np.asarray(np.sqrt((weights[:, first] * of_patient**2).sum(axis=1)) / weights.sum(axis=1))
