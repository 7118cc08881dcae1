"""What leaving one training slide out does to the loss on held-out slides.

The head is logistic regression on a slide's mean features, with balanced classes and a ridge penalty; its optimum is
unique, so leaving a slide out means the same whatever the order of training. All left-out models of a fold are solved
at once, started from the model of all slides, by steps with its Hessian, and by Newton's method where these do not end.

The estimate for larger cohorts is the influence function (Koh & Liang, ICML 2017): one Newton step, without solving
anything again. It is exact to first order in the slide's weight.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
_STEPS, _CHEAP_STEPS, _ENOUGH = 30, 60, 1e-8
_BATCH = 64  # models solved at once


def held_out_losses(
    vectors: Floats,
    truth: NDArray[np.bool_],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    left_out: NDArray[np.int64],
    penalty: float,
) -> tuple[Floats, Floats]:
    """Losses of the test slides by the full model, (T,), and by those without each of `left_out`, (M, T).

    vectors (S, D) standardised; the penalty is the C of scikit-learn's LogisticRegression, which this equals.
    """
    head = _Head(vectors, truth, train, test, penalty)
    full = head.fit(head.weights([None]), None)
    weights = head.weights(np.searchsorted(train, left_out).tolist())
    found = head.approach(weights, full)
    unsolved = torch.where(head.slope(found, weights).abs().amax(1) >= _ENOUGH)[0]
    for part in unsolved.split(_BATCH) if len(unsolved) else ():
        found[part] = head.fit(weights[part], found[part])
    return head.losses(full)[0], head.losses(found)


def estimated_losses(
    vectors: Floats, truth: NDArray[np.bool_], train: NDArray[np.int64], test: NDArray[np.int64], penalty: float
) -> tuple[Floats, Floats]:
    """As `held_out_losses` for all of train, by the influence function: (T,) and (n, T)."""
    head = _Head(vectors, truth, train, test, penalty)
    full = head.fit(head.weights([None]), None)
    return head.losses(full)[0], head.influence(full)


class _Head:
    """Parameters (M, n + 1) of M models: n coefficients of the training slides' kernel and an intercept."""

    def __init__(
        self,
        vectors: Floats,
        truth: NDArray[np.bool_],
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        penalty: float,
    ) -> None:
        own = torch.from_numpy(vectors[train])
        # an orthonormal basis of the training slides holds all that a ridge solution can be
        _, sizes, basis = torch.linalg.svd(own, full_matrices=False)
        basis = basis[sizes > 1e-9 * sizes.max()]
        self._x = torch.cat([own @ basis.T, torch.ones(len(own), 1, dtype=torch.float64)], dim=1)  # (n, P)
        held = torch.from_numpy(vectors[test])
        self._held = torch.cat([held @ basis.T, torch.ones(len(held), 1, dtype=torch.float64)], dim=1)
        self._y, self._held_y = (torch.from_numpy(truth[part].astype(np.float64)) for part in (train, test))
        self._ridge = torch.full((self._x.shape[1],), 1 / penalty, dtype=torch.float64)
        self._ridge[-1] = 0  # the intercept

    def weights(self, left_out: Sequence[int | None]) -> Tensor:
        """(M, n): 0 for the slide left out, classes balanced among the others."""
        kept = torch.ones(len(left_out), len(self._y), dtype=torch.float64)
        for row, place in enumerate(left_out):
            if place is not None:
                kept[row, place] = 0
        positive, total = kept @ self._y, kept.sum(1)
        of_slide = torch.where(self._y > 0, 1 / (2 * positive)[:, None], 1 / (2 * (total - positive))[:, None])
        return kept * of_slide * total[:, None]

    def fit(self, weights: Tensor, start: Tensor | None) -> Tensor:
        """Newton's method with halved steps -> parameters (M, P)."""
        models = len(weights)
        found = torch.zeros(models, len(self._ridge), dtype=torch.float64) if start is None else start
        value = self._objective(found, weights)
        for _ in range(_STEPS):
            slope = self.slope(found, weights)
            if slope.abs().max() < _ENOUGH:
                break
            chance = torch.sigmoid(found @ self._x.T)  # (M, n)
            step = self._solve(weights * chance * (1 - chance), slope)
            size = torch.ones(models, 1, dtype=torch.float64)
            for _ in range(30):
                tried = found - size * step
                now = self._objective(tried, weights)
                worse = now > value + 1e-12 * value.abs()
                if not worse.any():
                    break
                size = torch.where(worse[:, None], size / 2, size)
            found, value = tried, now
        return found

    def slope(self, parameters: Tensor, weights: Tensor) -> Tensor:
        """(M, P) gradient of the objective."""
        return (weights * (torch.sigmoid(parameters @ self._x.T) - self._y)) @ self._x + self._ridge * parameters

    def approach(self, weights: Tensor, full: Tensor) -> Tensor:
        """Steps from the full model with its own Hessian, which one slide changes little -> parameters (M, P)."""
        factor = self._factor(full)
        found = full.repeat(len(weights), 1)
        for _ in range(_CHEAP_STEPS):
            slope = self.slope(found, weights)
            if slope.abs().max() < _ENOUGH:
                break
            found = found - torch.cholesky_solve(slope.T, factor).T
        return torch.where(found.isfinite().all(1, keepdim=True), found, full)

    def _factor(self, full: Tensor) -> Tensor:
        """Cholesky factor (P, P) of the Hessian at the full model."""
        chance = torch.sigmoid(full @ self._x.T)  # (1, n)
        curvature = self.weights([None]) * chance * (1 - chance)
        factor: Tensor = torch.linalg.cholesky((self._x.T * curvature) @ self._x + torch.diag(self._ridge + 1e-12))
        return factor

    def _objective(self, parameters: Tensor, weights: Tensor) -> Tensor:
        scores = parameters @ self._x.T
        losses = torch.nn.functional.softplus(scores) - scores * self._y
        return (weights * losses).sum(1) + (self._ridge * parameters.square()).sum(1) / 2

    def _solve(self, curvature: Tensor, slope: Tensor) -> Tensor:
        """curvature (M, n), slope (M, P) -> Newton step (M, P)."""
        hessian = (self._x.T * curvature.unsqueeze(1)) @ self._x + torch.diag(self._ridge + 1e-12)
        step: Tensor = torch.cholesky_solve(slope.unsqueeze(2), torch.linalg.cholesky(hessian)).squeeze(2)
        return step

    def losses(self, parameters: Tensor) -> Floats:
        """(M, T) cross-entropy of the test slides."""
        scores = parameters @ self._held.T
        return np.asarray((torch.nn.functional.softplus(scores) - scores * self._held_y).numpy())

    def influence(self, full: Tensor) -> Floats:
        """(n, T): the losses after one Newton step towards each left-out optimum, with the Hessian of all slides."""
        without = self.weights(list(range(len(self._y))))  # (n, n)
        steps = torch.cholesky_solve(self.slope(full, without).T, self._factor(full)).T
        shift = steps @ self._held.T  # (n, T) by which scores fall
        errors = torch.sigmoid(full @ self._held.T) - self._held_y  # gradient of the loss by the score
        return np.asarray(self.losses(full)[0] - (shift * errors).numpy())


def influences(
    vectors: Floats,
    truth: NDArray[np.bool_],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    penalty: float,
    exact: NDArray[np.bool_],
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Floats, Floats, Floats]:
    """Change (S, S) of the loss of slide j by leaving slide i out, by retraining and by estimate, and losses (S,).

    NaN where j was not tested by a model that could have had i, or i is not `exact` (S,). Below 0: i did harm.
    """
    count = len(truth)
    retrained, estimated = (np.full((count, count), np.nan) for _ in range(2))
    losses = np.full(count, np.nan)
    for k, (train, test) in enumerate(folds):
        mean, std = vectors[train].mean(axis=0), vectors[train].std(axis=0)
        scaled = (vectors - mean) / np.where(std > 1e-9, std, np.inf)
        full, estimate = estimated_losses(scaled, truth, train, test, penalty)
        losses[test] = full
        estimated[np.ix_(train, test)] = estimate - full
        own = train[exact[train]]
        if len(own):
            _, without = held_out_losses(scaled, truth, train, test, own, penalty)
            retrained[np.ix_(own, test)] = without - full
        progress((k + 1) / len(folds))
    return retrained, estimated, losses
