"""What leaving one training patient out does to the loss on held-out slides.

The head is the probe of mil.tasks.linear_probe; its optimum is unique, so leaving a patient out means the same whatever
the order of training. No model is fitted again: from the optimum of all slides one Newton step is taken towards that
without the patient's, with the Hessian of the slides that stay (the leave-one-out estimate for penalised models of
Rad & Maleki, JRSS B 82, 2020), and the losses are those after the step. Patients with as many slides of each class
share the weights of all others', so each step is a downdate of the rank of their slides. The influence function of
Koh & Liang (2017) keeps the Hessian of all slides instead, and is far off where features are more than slides.
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
    vectors: Floats,
    truth: NDArray[np.bool_],
    patients: NDArray[np.str_],
    parts: Parts,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Floats, Floats]:
    """Change (P, S) of the loss of slide j by leaving patient i out, and losses (S,) with all; vectors (S, D).

    Patients in sorted order. NaN where j was not tested by a model that could have had i. Below 0: i did harm.
    """
    names = np.unique(patients)
    changes, losses = np.full((len(names), len(truth)), np.nan), np.full(len(truth), np.nan)
    for k, (train, test) in enumerate(parts):
        scaled = standardised(vectors, train)
        own, of_slide = np.unique(patients[train], return_inverse=True)
        held = scaled[test], truth[test]
        losses[test], without = _left_out(scaled[train], truth[train], of_slide, held)
        changes[np.ix_(np.searchsorted(names, own), test)] = without - losses[test]
        progress((k + 1) / len(parts))
    return changes, losses


def _left_out(
    x: Floats, y: NDArray[np.bool_], patient: NDArray[np.int64], held_out: tuple[Floats, NDArray[np.bool_]]
) -> tuple[Floats, Floats]:
    """Losses of the held-out slides (T,), by the model of x (n, D) and without each of its P patients (P, T)."""
    held, held_y = held_out
    fitted = fit_probe(x, y.astype(np.int64))
    _, sizes, basis = np.linalg.svd(x, full_matrices=False)  # it holds all that a ridge solution of these slides can be
    basis = basis[sizes > 1e-9 * sizes.max()]
    x, held = (np.column_stack([part @ basis.T, np.ones(len(part))]) for part in (x, held))
    ridge = np.append(np.full(len(basis), 1 / PENALTY), _NO_RIDGE)
    found = np.append(basis @ fitted.coef_[0], fitted.intercept_)
    found = found - _Step(found, x, y, ridge, (0, 0)).all_slides()  # the solver stops just short of the optimum
    slides = [np.flatnonzero(patient == own) for own in range(patient.max() + 1)]
    counts = [(int((~y[own]).sum()), int(y[own].sum())) for own in slides]
    without = np.full((len(slides), len(held)), np.nan)
    for less in set(counts):
        if less[0] < (~y).sum() and less[1] < y.sum():  # else a class is gone
            step = _Step(found, x, y, ridge, less)
            own = [i for i, of in enumerate(counts) if of == less]
            without[own] = _losses(np.stack([found - step.less(slides[i]) for i in own]), held, held_y)
    return _losses(found[None], held, held_y)[0], without


def _losses(parameters: Floats, held: Floats, held_y: NDArray[np.bool_]) -> Floats:
    """(M, P) -> cross-entropies (M, T)."""
    scores = parameters @ held.T
    return np.asarray(np.logaddexp(0, scores) - scores * held_y)


class _Step:
    """A Newton step from parameters (P,) towards the optimum of slides x (n, P), in whose loss both classes count the
    same once as many slides of each as `less` says are gone."""

    def __init__(self, at: Floats, x: Floats, y: NDArray[np.bool_], ridge: Floats, less: tuple[int, int]) -> None:
        left = (~y).sum() - less[0], y.sum() - less[1]
        weights = sum(left) / (2.0 * np.where(y, left[1], left[0]))
        chance = expit(x @ at)
        self._x, self._errors, self._curvature = x, weights * (chance - y), weights * chance * (1 - chance)
        self._slope = x.T @ self._errors + ridge * at
        self._factor = cho_factor((x.T * self._curvature) @ x + np.diag(ridge))

    def all_slides(self) -> Floats:
        return np.asarray(cho_solve(self._factor, self._slope))

    def less(self, out: NDArray[np.int64]) -> Floats:
        """(P,), without the slides `out` (k,): Woodbury's formula."""
        own, curvature = self._x[out], self._curvature[out]
        turned = cho_solve(self._factor, own.T)  # (P, k)
        step = self.all_slides() - turned @ self._errors[out]
        more = np.linalg.solve(np.eye(len(out)) - curvature[:, None] * (own @ turned), curvature * (own @ step))
        return np.asarray(step + turned @ more)
