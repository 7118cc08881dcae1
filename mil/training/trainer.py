"""From slides to the checkpoints of folds: a fold's model is the mean of its members, calibrated on what they held out.

Each member learns from its own part of the fold's training slides and is stopped on the rest; features are standardised
with the mean and standard deviation of that part. Every training slide is held out of one member, and temperature, bias
and threshold are fitted to what the members say of those slides. Weights come from SeedSequence((seed, repeat, fold,
member)), so a fold's model does not depend on which others are trained with it.

A head with a recipe of its own is fitted once a fold, see mil.training.at_once. `--head auto` trains several heads and
weighs them by what they say of what they held out, see mil.heads.stacking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.constant_features import SMALLEST_STD
from mil.cohort.splits import Fold, Indices
from mil.heads.committee import joined
from mil.heads.head import Head, HeadShape, OwnRecipe
from mil.heads.registry import build_head
from mil.heads.stacking import stack
from mil.run.checkpoint import Checkpoint
from mil.training.at_once import fit_at_once
from mil.training.config import TrainConfig
from mil.training.descent import Descent, OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan

Floats = NDArray[np.float64]


def train_folds(
    cohort: Cohort,
    folds: Sequence[Fold],
    config: TrainConfig,
    device: torch.device,
    on_epoch: OnEpoch,
    plan: Plan,
) -> list[tuple[Checkpoint, pd.DataFrame]]:
    """The checkpoint and the history of each fold, which are of one repeat.

    on_epoch is told the member's fold. RequestError when a loss is no longer a number.
    """
    trained: list[dict[str, list[Model]]] = [{} for _ in folds]  # of each fold, by head
    for number, name in enumerate(plan.heads):
        models = [[Model(member) for member in _members(fold, name, number, plan.shape)] for fold in folds]
        every = [model for of_fold in models for model in of_fold]
        for start in range(0, len(every), plan.together):
            _train(cohort, every[start : start + plan.together], replace(config, head=name), device, on_epoch, plan)
        for of_fold, own in zip(trained, models, strict=True):
            of_fold[name] = own
    return [
        (_checkpoint(fold, of_fold, cohort, config, plan.shape), _table(of_fold, cohort))
        for fold, of_fold in zip(folds, trained, strict=True)
    ]


def _members(fold: Fold, head: str, number: int, shape: HeadShape) -> list[Fold]:
    """Of a head that is the one with this number among those that are trained."""
    first = number * len(fold.members)
    if isinstance(build_head(head, shape), OwnRecipe):
        return [replace(fold, member=first)]
    return [replace(member, member=first + member.member) for member in fold.members]


def _train(
    cohort: Cohort,
    models: Sequence[Model],
    config: TrainConfig,
    device: torch.device,
    on_epoch: OnEpoch,
    plan: Plan,
) -> None:
    heads = [_fresh_head(cohort, model.fold, config, plan.shape).to(device) for model in models]
    if not isinstance(heads[0], OwnRecipe):
        Descent(cohort, models, heads, config, device, plan).run(on_epoch)
        return
    for head, model in zip(heads, models, strict=True):
        assert isinstance(head, OwnRecipe)
        fit_at_once(head, cohort, model, config)
        on_epoch(model.fold, model.history[-1].columns(cohort.task))


def _fresh_head(cohort: Cohort, fold: Fold, config: TrainConfig, shape: HeadShape) -> Head:
    seeds = np.random.SeedSequence((config.seed, fold.repeat, fold.fold, fold.member))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    head = build_head(config.head, shape)
    _set_standardisation(head, cohort, fold.train)
    return head


def _checkpoint(
    fold: Fold, trained: Mapping[str, Sequence[Model]], cohort: Cohort, config: TrainConfig, shape: HeadShape
) -> Checkpoint:
    """trained: the models of each head."""
    task, sizes = cohort.task, [len(models) for models in trained.values()]
    answers, slides = zip(*map(_held_out, trained.values()), strict=True)
    targets, weights, factors, offset = cohort.targets[slides[0]], {}, np.ones(1), np.zeros(len(task.output_names))
    said = answers[0]
    if len(trained) > 1:
        found, held_out = stack(answers, targets)
        weights, factors, offset = dict(zip(trained, found.weights.tolist(), strict=True)), found.factors, found.offset
        said = task.answers(torch.from_numpy(held_out))
    states = [model.kept.state for models in trained.values() for model in models]
    each = torch.from_numpy(np.repeat(factors / sizes, sizes))
    state = states[0] if len(states) == 1 else joined(states, each, torch.from_numpy(offset))
    return Checkpoint(
        head=config.head,
        shape=asdict(shape),
        task=task,
        calibration=task.calibrate(said, targets, cohort.targets[fold.train]),
        tensors={name: tensor.numpy() for name, tensor in state.items()},
        members=tuple(np.repeat(list(trained), sizes).tolist()),
        weights=weights,
    )


def _held_out(models: Sequence[Model]) -> tuple[Floats, Indices]:
    """What the models of a head say of slides that they were not fitted to (n, C), and these (n,), rising."""
    slides = np.concatenate([model.kept.slides for model in models])
    order = np.argsort(slides)
    return np.concatenate([model.kept.answers for model in models])[order], slides[order]


def _table(trained: Mapping[str, Sequence[Model]], cohort: Cohort) -> pd.DataFrame:
    tables = []
    for name, models in trained.items():
        for model in models:
            table = model.table(cohort)
            table.insert(0, "member", model.fold.member)
            table.insert(1, "head", name)
            tables.append(table)
    columns = ["member"] * (len(tables) == 1) + ["head"] * (len(trained) == 1)
    return pd.concat(tables, ignore_index=True).drop(columns=columns)


def _set_standardisation(head: Head, cohort: Cohort, slides: Indices) -> None:
    """Over all patches of the slides; a constant feature is only centred."""
    mean, std = cohort.spread(slides)
    head.get_buffer("mean").copy_(torch.from_numpy(mean))
    head.get_buffer("std").copy_(torch.from_numpy(np.where(std > SMALLEST_STD, std, 1.0)))
