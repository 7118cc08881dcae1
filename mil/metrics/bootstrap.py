"""95 % intervals from a bootstrap over patients (percentile method, Efron 1979).

A draw gives every patient a multiplicity; all slides of the patient carry it as their weight. Row 0 of the
weights is 1 for everyone: the value itself. So each figure is one array expression over (1 + draws, n).

Out-of-fold predictions stay as they are and no model is trained again: the intervals are those of these models, and
what another training set, split or seed would change is not in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = dict[str, float | None]  # value, low, high
PERCENTILES = (2.5, 97.5)


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
