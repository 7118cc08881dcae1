"""Where a two-class decision is cut."""

import numpy as np
from numpy.typing import NDArray

from mil.metrics.bootstrap import Floats


def choose_threshold(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Threshold (score >= it is positive) with the best balanced accuracy: a midpoint between two scores.

    Among equally good ones the one nearest to 0.5. truth (n,) must hold both classes.
    """
    levels = np.unique(scores)
    candidates = np.concatenate([[levels[0] / 2], (levels[:-1] + levels[1:]) / 2, [(1 + levels[-1]) / 2]])
    called = scores >= candidates[:, None]  # (candidates, n)
    balanced = called[:, truth].mean(axis=1) + (~called[:, ~truth]).mean(axis=1)
    best = candidates[np.isclose(balanced, balanced.max())]
    return float(best[np.abs(best - 0.5).argmin()])
