"""From slides to the checkpoints of folds: a fold's model is the mean of its members, calibrated on what they held out.

Each member learns from its own part of the fold's training slides and is stopped on the rest; features and columns of
the slide table are standardised over that part. Every training slide is held out of one member, and temperature, bias
and threshold are fitted to what the members say of those slides. Weights come from SeedSequence((seed, repeat, fold,
member)), so a fold's model does not depend on which others are trained with it.

A head with a recipe of its own is fitted once a fold, see mil.training.at_once. `--head auto` trains several heads and
weighs them by what they say of what they held out, see mil.heads.stacking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

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
from mil.heads.with_covariates import WithCovariates
from mil.run.checkpoint import Checkpoint
from mil.training.at_once import fit_at_once
from mil.training.config import TrainConfig
from mil.training.descent import Descent, OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Team:
    """Models of one head that are trained together, each on its member of a fold; the unit of work of a training.

    Rounding depends on who is in a team, so the plan says it, wherever teams are trained.
    """

    head: str
    members: tuple[Fold, ...]


def teams_of(folds: Sequence[Fold], plan: Plan) -> list[Team]:
    """All that has to be trained for these folds, which are of one repeat."""
    teams = []
    for number, name in enumerate(plan.heads):
        every = [member for fold in folds for member in _members(fold, name, number, plan.shape)]
        teams += [
            Team(name, tuple(every[start : start + plan.together])) for start in range(0, len(every), plan.together)
        ]
    return teams


def train_team(
    cohort: Cohort, team: Team, config: TrainConfig, device: torch.device, on_epoch: OnEpoch, plan: Plan
) -> list[Model]:
    """on_epoch is told the member's fold. RequestError when a loss is no longer a number."""
    config, models = replace(config, head=team.head), [Model(member) for member in team.members]
    heads = [_fresh_head(cohort, model.fold, config, plan.shape).to(device) for model in models]
    if not isinstance(heads[0], OwnRecipe):
        Descent(cohort, models, heads, config, device, plan).run(on_epoch)
        return models
    for head, model in zip(heads, models, strict=True):
        assert isinstance(head, OwnRecipe)
        fit_at_once(head, cohort, model, config)
        on_epoch(model.fold, model.history[-1].columns(cohort.task))
    return models


def folds_trained(
    cohort: Cohort, folds: Sequence[Fold], trained: Sequence[Sequence[Model]], config: TrainConfig, plan: Plan
) -> list[tuple[Checkpoint, pd.DataFrame]]:
    """The checkpoint and the history of each fold. trained: the models of each of `teams_of` these folds."""
    by_fold: dict[int, dict[str, list[Model]]] = {fold.number: {} for fold in folds}
    for team, models in zip(teams_of(folds, plan), trained, strict=True):
        for model in models:
            by_fold[model.fold.number].setdefault(team.head, []).append(model)
    return [
        (_checkpoint(fold, by_fold[fold.number], cohort, config, plan.shape), _table(by_fold[fold.number], cohort))
        for fold in folds
    ]


def train_folds(
    cohort: Cohort,
    folds: Sequence[Fold],
    config: TrainConfig,
    device: torch.device,
    on_epoch: OnEpoch,
    plan: Plan,
) -> list[tuple[Checkpoint, pd.DataFrame]]:
    """The checkpoint and the history of each fold, which are of one repeat, trained in this process."""
    teams = teams_of(folds, plan)
    return folds_trained(
        cohort, folds, [train_team(cohort, team, config, device, on_epoch, plan) for team in teams], config, plan
    )


def _members(fold: Fold, head: str, number: int, shape: HeadShape) -> list[Fold]:
    """Of a head that is the one with this number among those that are trained."""
    first = number * len(fold.members)
    if isinstance(build_head(head, shape), OwnRecipe):
        return [replace(fold, member=first)]
    return [replace(member, member=first + member.member) for member in fold.members]


def _fresh_head(cohort: Cohort, fold: Fold, config: TrainConfig, shape: HeadShape) -> Head:
    seeds = np.random.SeedSequence((config.seed, fold.repeat, fold.fold, fold.member))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    head = build_head(config.head, shape)
    _set_standardisation(head.of_slide, cohort, fold.train)
    if isinstance(head, WithCovariates):
        assert cohort.covariates is not None
        encoding = cohort.covariates.columns.encoding(cohort.covariates.values[fold.train])
        head.encode_by(*map(torch.from_numpy, encoding))
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
