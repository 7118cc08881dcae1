"""What leaving one training slide out does to the loss on held-out slides.

The head is the probe of mil.tasks.linear_probe; its optimum is unique, so leaving a slide out means the same
whatever the order of training. No model is fitted again: from the optimum of all slides one Newton step is taken
towards that without the slide, with the Hessian of the slides that stay (the leave-one-out estimate for penalised
models of Rad & Maleki, JRSS B 82, 2020), and the losses are those after the step. The slides left out of one class
share all weights but their own, so each step is a downdate of rank one. The influence function of Koh & Liang (2017)
keeps the Hessian of all slides instead, and is far off where features are more than slides.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from mil.diagnosis.numbers.folds import Parts
from mil.tasks.linear_probe import PENALTY, fit_probe, standardised

Floats = NDArray[np.float64]
_NO_RIDGE = 1e-12  # of the intercept, and for the sake of the Cholesky factor


def influences(
    vectors: Floats, truth: NDArray[np.bool_], parts: Parts, progress: Callable[[float], None] = lambda share: None
) -> tuple[Floats, Floats]:
    """Change (S, S) of the loss of slide j by leaving slide i out, and losses (S,) with all; vectors (S, D).

    NaN where j was not tested by a model that could have had i. Below 0: i did harm.
    """
    changes, losses = np.full((len(truth), len(truth)), np.nan), np.full(len(truth), np.nan)
    for k, (train, test) in enumerate(parts):
        scaled = standardised(vectors, train)
        losses[test], without = _left_out(scaled[train], truth[train], scaled[test], truth[test])
        changes[np.ix_(train, test)] = without - losses[test]
        progress((k + 1) / len(parts))
    return changes, losses


def _left_out(x: Floats, y: NDArray[np.bool_], held: Floats, held_y: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Losses of the held-out slides (T, D), by the model of x (n, D) and without each of its slides: (T,), (n, T)."""
    fitted = fit_probe(x, y.astype(np.int64))
    _, sizes, basis = np.linalg.svd(x, full_matrices=False)  # it holds all that a ridge solution of these slides can be
    basis = basis[sizes > 1e-9 * sizes.max()]
    x, held = (np.column_stack([part @ basis.T, np.ones(len(part))]) for part in (x, held))
    ridge = np.append(np.full(len(basis), 1 / PENALTY), _NO_RIDGE)
    found = np.append(basis @ fitted.coef_[0], fitted.intercept_)
    found = found - _Step(found, x, y, ridge, _balanced(y)).all_slides()  # the solver stops just short of the optimum
    without = np.full((len(y), len(held)), np.nan)
    for side in (True, False):
        own = np.flatnonzero(y == side)
        if len(own) > 1:  # else a class is gone
            steps = _Step(found, x, y, ridge, _balanced(y, less=side)).less_each(own)
            without[own] = _losses(found - steps, held, held_y)
    return _losses(found[None], held, held_y)[0], without


def _balanced(y: NDArray[np.bool_], less: bool | None = None) -> Floats:
    """Weights (n,) with which both classes count the same, once a slide of the class `less` is gone."""
    counts = {side: int((y == side).sum()) - (side is less) for side in (True, False)}
    return sum(counts.values()) / (2.0 * np.where(y, counts[True], counts[False]))


def _losses(parameters: Floats, held: Floats, held_y: NDArray[np.bool_]) -> Floats:
    """(M, P) -> cross-entropies (M, T)."""
    scores = parameters @ held.T
    return np.asarray(np.logaddexp(0, scores) - scores * held_y)


class _Step:
    """A Newton step from parameters (P,) towards the optimum of slides x (n, P) with weights (n,)."""

    def __init__(self, at: Floats, x: Floats, y: NDArray[np.bool_], ridge: Floats, weights: Floats) -> None:
        chance = expit(x @ at)
        self._x, self._errors, self._curvature = x, weights * (chance - y), weights * chance * (1 - chance)
        self._slope = x.T @ self._errors + ridge * at
        self._factor = cho_factor((x.T * self._curvature) @ x + np.diag(ridge))

    def all_slides(self) -> Floats:
        return np.asarray(cho_solve(self._factor, self._slope))

    def less_each(self, out: NDArray[np.int64]) -> Floats:
        """(M, P), without one slide each of `out`: Sherman and Morrison's formula."""
        own = self._x[out]
        turned = cho_solve(self._factor, own.T).T  # (M, P)
        step = self.all_slides() - self._errors[out, None] * turned
        leverage = self._curvature[out] * (own * turned).sum(axis=1)
        more = self._curvature[out] * (own * step).sum(axis=1) / (1 - leverage)
        return np.asarray(step + more[:, None] * turned)
