"""How a cohort is trained fastest: which models together, in which precision. The same for every start of a request.

Models are trained together, with the same result, unless a step of one model keeps a core busy (large bags on a CPU)
or torch.func.vmap cannot run their head, as where shapes depend on the data. A step of large bags gains little from
threads, so models of these are trained side by side, and the machine's threads are parted among them. Large bags are
done in bfloat16 where the machine has instructions for it; evaluation is always in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.heads.bags import pack
from mil.heads.dropout import Noise, seed_dropout
from mil.heads.head import Head, HeadShape, OwnRecipe
from mil.heads.registry import build_head, heads_of
from mil.tasks.classification import Classification
from mil.training.config import TrainConfig
from mil.training.stack import Stack, TrainingLoss
from tiling.jobs.errors import RequestError
from tiling.jobs.memory import available_bytes

_LARGE_STEP = 500_000  # features in a step, above which a CPU is busy with one model
_BYTES_A_FEATURE = 16  # of a step on a CPU: as read, limited and standardised, in bfloat16
_SHARE = 0.5  # of the memory that is free, which steps may take
_GPU_FLOATS = 2**32  # inputs of all models in a step: 16 GiB, and about twice that with what is kept for gradients


@dataclass(frozen=True)
class Plan:
    """What all folds of a run have in common; it depends on nothing but the request and the machine."""

    groups: tuple[tuple[Fold, ...], ...]  # all folds in their order; those of a group, of one repeat, end together
    heads: tuple[str, ...]  # that are trained in each fold
    recipes: frozenset[str]  # of these, those with a recipe of their own, fitted in one go for a fold
    together: int  # models at most that are trained as one
    shape: HeadShape
    steps_per_epoch: int  # such that a step has about `batch_slides` of a fold's training slides
    bf16: bool
    at_once: int  # models that are trained side by side, where one is trained as one
    threads: int  # of each of these


def plan_training(cohort: Cohort, folds: Sequence[Fold], config: TrainConfig, device: torch.device) -> Plan:
    shape = HeadShape(
        dim_in=cohort.features[0].shape[1],
        n_classes=len(cohort.task.output_names),
        embed_dim=config.embed_dim,
        attention_dim=config.attention_dim,
        dropout=config.dropout,
        feature_limit=config.feature_limit,
        covariates=cohort.covariates.columns.width if cohort.covariates else 0,
        targets=cohort.task.target_sizes,
    )
    names, recipes = trained_heads(cohort, config), set()
    for name in names:
        head = build_head(name, replace(shape, covariates=0))
        _require_fitting(name, head, cohort)
        if isinstance(head, OwnRecipe):
            recipes.add(name)
    if len(names) > 1 and not all(len(member.val) for fold in folds for member in fold.members):
        raise RequestError(f"--head {config.head} needs held-out slides; give --inner-folds or --val-fraction")
    models = [member for fold in folds for member in fold.members]
    trained_on = len(np.unique(np.concatenate([model.train for model in models])))
    steps = math.ceil(max(len(model.train) for model in models) / config.batch_slides)
    patches = float(np.mean([len(features) for features in cohort.features])) * trained_on / steps
    features_in_step = patches * (1 - config.instance_dropout) * shape.dim_in
    large = features_in_step > _LARGE_STEP
    size = config.parallel_models
    if not size and device.type == "cpu":
        size = 1 if large else len(models)
    elif not size:
        size = max(1, min(len(models), math.floor(_GPU_FLOATS / features_in_step)))
    if size > 1 and len(names) == 1 and not can_stack(names[0], shape, cohort):
        size = 1
    bf16 = config.precision == "bf16" or (config.precision == "auto" and large and _has_bf16(device))
    cores = torch.get_num_threads()
    side_by_side = large and size == 1 and device.type == "cpu"
    at_once = _at_once(min(cores, len(models)), features_in_step) if side_by_side else 1
    threads = max(1, cores // len(models)) if side_by_side else cores
    return Plan(_groups(folds, size), names, frozenset(recipes), size, shape, steps, bf16, at_once, threads)


def _at_once(most: int, features_in_step: float) -> int:
    """As many as memory has room for."""
    room = _SHARE * available_bytes() / (_BYTES_A_FEATURE * features_in_step)
    return max(1, min(most, math.floor(room)))


def trained_heads(cohort: Cohort, config: TrainConfig) -> tuple[str, ...]:
    """In each fold."""
    patches = float(np.median([len(features) for features in cohort.features]))
    return heads_of(config.head, len(cohort.task.output_names), patches)


def _groups(folds: Sequence[Fold], size: int) -> tuple[tuple[Fold, ...], ...]:
    """Consecutive folds of one repeat with at most `size` models, or one fold."""
    groups: list[tuple[Fold, ...]] = []
    for _, of_repeat in groupby(folds, key=lambda fold: fold.repeat):
        own = tuple(of_repeat)
        count = max(1, size // max(len(fold.members) for fold in own))
        groups += [own[start : start + count] for start in range(0, len(own), count)]
    return tuple(groups)


def _require_fitting(name: str, head: Head, cohort: Cohort) -> None:
    task = cohort.task
    if cohort.covariates and isinstance(head, OwnRecipe):
        raise RequestError(
            f"the head {name} is not trained by gradient and cannot be told of columns; leave out --covariates, or "
            "take gated-abmil"
        )
    if head.for_classes_alone and not isinstance(task, Classification):
        raise RequestError(f"the head {name} tells classes apart, and the target is {task.noun}; take gated-abmil")


def _has_bf16(device: torch.device) -> bool:
    """Whether there are instructions for it; without them it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def can_stack(name: str, shape: HeadShape, cohort: Cohort) -> bool:
    """Whether two heads of this kind can be trained as one, tried on two small bags."""
    heads = [build_head(name, shape) for _ in range(2)]
    if isinstance(heads[0], OwnRecipe):
        return False
    noise = Noise(0)
    for head in heads:
        seed_dropout(head, noise)
    bags = pack([torch.ones(3, shape.dim_in), torch.ones(2, shape.dim_in)], torch.zeros(2, shape.covariates))
    noise.set([0, 1], bags.sizes, 0)
    task, targets = cohort.task, cohort.targets
    stack = Stack(heads, TrainingLoss(task, task.losses[0]))
    terms = torch.stack([task.loss_terms(targets)] * 2)
    try:
        for train in (False, True):
            losses, _ = stack(bags, torch.from_numpy(targets[[0, -1]]), terms, train)
        losses.sum().backward()
    except (RuntimeError, NotImplementedError):  # what vmap raises for data-dependent shapes and unseeded randomness
        return False
    return True
