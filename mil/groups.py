"""Which models are trained together: as many as is faster, the same for every start of the same request.

Where a step of one model keeps the machine busy, on large bags on a CPU, models are trained one after another; so are
heads that torch.func.vmap cannot run, such as those whose shapes depend on the data.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from mil.bags import pack
from mil.cohort import Cohort
from mil.config import TrainConfig
from mil.dropout import Noise, seed_dropout
from mil.models import HeadShape, build_head
from mil.splits import Fold
from mil.stack import Stack

_CPU_FLOATS = 500_000  # features in a step, above which stacking on a CPU gains nothing
_GPU_FLOATS = 2**32  # inputs of all models in a step: 16 GiB, and about twice that with what is kept for gradients


def group_folds(
    cohort: Cohort, folds: Sequence[Fold], config: TrainConfig, shape: HeadShape, device: torch.device
) -> list[Sequence[Fold]]:
    """Folds in their order, cut into groups to be trained together."""
    size = config.parallel_models or _fastest_size(cohort, folds, config, shape, device)
    if size > 1 and not can_stack(config.head, shape):
        size = 1
    return [folds[start : start + size] for start in range(0, len(folds), size)]


def can_stack(name: str, shape: HeadShape) -> bool:
    """Whether two heads of this kind can be trained as one, tried on two small bags."""
    heads = [build_head(name, shape) for _ in range(2)]
    noise = Noise(0)
    for head in heads:
        seed_dropout(head, noise)
    bags = pack([torch.ones(3, shape.dim_in), torch.ones(2, shape.dim_in)])
    noise.set([0, 1], bags.sizes, 0)
    stack = Stack(heads)
    try:
        for train in (False, True):
            losses, _ = stack(bags, torch.tensor([0, 1]), torch.ones(2, shape.n_classes), train)
        losses.sum().backward()
    except (RuntimeError, NotImplementedError):  # what vmap raises for data-dependent shapes and unseeded randomness
        return False
    return True


def _fastest_size(
    cohort: Cohort, folds: Sequence[Fold], config: TrainConfig, shape: HeadShape, device: torch.device
) -> int:
    sizes = np.array([len(features) for features in cohort.features])
    shared = len(np.unique(np.concatenate([fold.train for fold in folds]))) / max(len(fold.train) for fold in folds)
    floats = float(sizes.mean()) * config.batch_slides * shared * shape.dim_in  # features in a step of all models
    if device.type == "cpu":
        return len(folds) if floats <= _CPU_FLOATS else 1
    return max(1, min(len(folds), math.floor(_GPU_FLOATS / floats)))
