"""A linear model of a slide's mean features: logistic regression, ridge or Cox regression, by the task's own loss.

It is made for feature files with one row, such as embeddings of whole slides, and is the plain baseline for others. Its
weights are the smallest for their loss: a ridge penalty on standardised slide vectors (Hoerl and Kennard, Technometrics
1970), the one with the lowest loss in a cross-validation by patient within the training part. As the logits are a mean
over patches, each patch has its share in them.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from mil.heads.bags import Bags, pack, segment_mean
from mil.heads.head import Fitted, HeadShape, MilOutput, OwnRecipe, TrainingSlides
from tiling.jobs.errors import RequestError

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the mean loss
_PARTS = 5  # of the cross-validation
_SMALLEST = 1e-6  # deviation below which a feature is constant
Floats = NDArray[np.float64]


class Linear(OwnRecipe):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits and contributions (ΣN, C). Fitted on the CPU."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.classify = nn.Linear(shape.dim_in, shape.n_classes)

    def forward(self, bags: Bags) -> MilOutput:
        patches, sizes = self.standardise(bags), bags.sizes
        attention = torch.cat([patches.new_full((n,), 1 / n) for n in sizes])
        patch_logits = self.classify(patches)
        logits = self.classify(segment_mean(patches, sizes))
        return MilOutput(logits, attention, patch_logits, contributions=attention.unsqueeze(1) * patch_logits)

    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> Fitted:
        """The loss is that of the training part. RequestError where all slides are of one patient."""
        task = slides.task
        assert task is not None
        with torch.no_grad():
            means = [self.standardise(pack([f.to(self.device)])).mean(0) for f in slides.features]
        x = torch.stack(means).double().cpu().numpy()  # (S, D)
        scale = np.maximum(x.std(axis=0), _SMALLEST)
        x, targets = x / scale, torch.from_numpy(slides.labels)
        criterion = task.judged_by(task.loss_terms(slides.labels).double())
        parts = _parts(slides, int(rng.integers(1 << 31)))
        outputs = self.classify.out_features

        def fitted(rows: NDArray[np.int64], penalty: float) -> tuple[Floats, Floats]:
            return _fitted(x[rows], lambda said: criterion(said, targets[torch.from_numpy(rows)]), penalty, outputs)

        held_out = [torch.zeros(len(x), outputs, dtype=torch.float64) for _ in PENALTIES]
        for said, penalty in zip(held_out, PENALTIES, strict=True):
            for train, test in parts:
                weights, bias = fitted(train, penalty)
                said[torch.from_numpy(test)] = torch.from_numpy(x[test] @ weights.T + bias)
        best = int(np.argmin([float(criterion(said, targets).mean()) for said in held_out]))
        weights, bias = fitted(np.arange(len(x)), PENALTIES[best])
        with torch.no_grad():
            self.classify.weight.copy_(torch.from_numpy(weights / scale))
            self.classify.bias.copy_(torch.from_numpy(bias))
        return Fitted(float(criterion(torch.from_numpy(x @ weights.T + bias), targets).mean()), held_out[best])


def _parts(slides: TrainingSlides, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    assert slides.task is not None
    patients = len(set(slides.patient_ids))
    if patients < 2:
        raise RequestError("--head linear needs slides of two patients at least to choose its penalty; found one")
    strata = slides.task.strata(slides.labels)[0].of_slide  # where there are several targets, of the first
    splitter = StratifiedGroupKFold(min(_PARTS, patients), shuffle=True, random_state=seed)
    return list(splitter.split(strata, strata, slides.patient_ids))


def _fitted(x: Floats, losses: Callable[[Tensor], Tensor], penalty: float, outputs: int) -> tuple[Floats, Floats]:
    """Weights (C, D) and bias (C,) with the lowest mean loss + penalty / 2 · |weights|².

    losses: logits (n, C) -> (n,).
    """
    axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]  # the penalty needs no other direction
    turned = torch.from_numpy(x @ axes.T)

    def loss(flat: Floats) -> tuple[float, Floats]:
        parameters = torch.from_numpy(flat).requires_grad_()
        weights = parameters.view(outputs, -1)  # (C, K + 1), the bias last
        logits = turned @ weights[:, :-1].T + weights[:, -1]
        value = losses(logits).mean() + penalty / 2 * weights[:, :-1].square().sum()
        value.backward()
        assert parameters.grad is not None
        return float(value.detach()), parameters.grad.numpy()

    found = minimize(loss, np.zeros(outputs * (len(axes) + 1)), jac=True, method="L-BFGS-B").x.reshape(outputs, -1)
    return found[:, :-1] @ axes, found[:, -1]


def build(shape: HeadShape) -> Linear:
    return Linear(shape)
