"""From slides to the checkpoints of folds: a fold's model is the mean of its members, calibrated on what they held out.

Each member learns from its own part of the fold's training slides and is stopped on the rest; features are standardised
with the mean and standard deviation of that part. Every training slide is held out of one member, and temperature, bias
and threshold are fitted to what the members say of those slides. Weights come from SeedSequence((seed, repeat, fold,
member)), so a fold's model does not depend on which others are trained with it.

A head with a recipe of its own is fitted once a fold, see mil.training.at_once.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.constant_features import SMALLEST_STD
from mil.cohort.splits import Fold, Indices
from mil.heads.committee import joined
from mil.heads.head import Head, HeadShape, OwnRecipe
from mil.heads.registry import build_head
from mil.run.checkpoint import Checkpoint
from mil.training.at_once import fit_at_once
from mil.training.config import TrainConfig
from mil.training.descent import Descent, OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan


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
    models = [[Model(member) for member in ([fold] if plan.own_recipe else fold.members)] for fold in folds]
    every = [model for of_fold in models for model in of_fold]
    for start in range(0, len(every), plan.together):
        group = every[start : start + plan.together]
        heads = [_fresh_head(cohort, model.fold, config, plan.shape).to(device) for model in group]
        if isinstance(heads[0], OwnRecipe):
            fit_at_once(heads[0], cohort, group[0], config)
            on_epoch(group[0].fold, group[0].history[-1].columns(cohort.task))
        else:
            Descent(cohort, group, heads, config, device, plan).run(on_epoch)
    return [
        (_checkpoint(fold, of_fold, cohort, config, plan.shape), _table(of_fold, cohort))
        for fold, of_fold in zip(folds, models, strict=True)
    ]


def _fresh_head(cohort: Cohort, fold: Fold, config: TrainConfig, shape: HeadShape) -> Head:
    seeds = np.random.SeedSequence((config.seed, fold.repeat, fold.fold, fold.member))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    head = build_head(config.head, shape)
    _set_standardisation(head, cohort, fold.train)
    return head


def _checkpoint(
    fold: Fold, members: Sequence[Model], cohort: Cohort, config: TrainConfig, shape: HeadShape
) -> Checkpoint:
    kept = [member.kept for member in members]
    answers, slides = (np.concatenate([getattr(of, name) for of in kept]) for name in ("answers", "slides"))
    state = kept[0].state if len(kept) == 1 else joined([of.state for of in kept])
    return Checkpoint(
        head=config.head,
        shape=asdict(shape),
        task=cohort.task,
        calibration=cohort.task.calibrate(answers, cohort.targets[slides], cohort.targets[fold.train]),
        tensors={name: tensor.numpy() for name, tensor in state.items()},
        members=len(kept),
    )


def _table(members: Sequence[Model], cohort: Cohort) -> pd.DataFrame:
    tables = [member.table(cohort) for member in members]
    if len(tables) == 1:
        return tables[0]
    for member, table in enumerate(tables):
        table.insert(0, "member", member)
    return pd.concat(tables, ignore_index=True)


def _set_standardisation(head: Head, cohort: Cohort, slides: Indices) -> None:
    """Over all patches of the slides; a constant feature is only centred."""
    mean, std = cohort.spread(slides)
    head.get_buffer("mean").copy_(torch.from_numpy(mean))
    head.get_buffer("std").copy_(torch.from_numpy(np.where(std > SMALLEST_STD, std, 1.0)))
