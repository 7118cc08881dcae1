"""From slides to the checkpoints of folds: a fold's model is the mean of its members, calibrated on what they held out.

Each member learns from its own part of the fold's training slides and is stopped on the rest; features and columns of
the slide table are standardised over that part. Every training slide is held out of one member, and temperature, bias
and threshold are fitted to what the members say of those slides. Weights come from SeedSequence((seed, repeat, fold,
member)), so a fold's model does not depend on which others are trained with it.

A head with a recipe of its own is fitted once a fold, see mil.training.at_once. `--head auto` trains several heads and
weighs them by what they say of what they held out, see mil.heads.stacking.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold, Indices
from mil.heads.committee import joined
from mil.heads.head import HeadShape
from mil.heads.stacking import stack
from mil.run.checkpoint import Checkpoint
from mil.training.config import TrainConfig
from mil.training.descent import OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan
from mil.training.teams import Job, Team, jobs_of, train_jobs

Floats = NDArray[np.float64]
Group = Sequence[Fold]  # of one repeat
TrainedFolds = list[tuple[Checkpoint, pd.DataFrame]]  # of each fold its checkpoint and history


def train_groups(
    cohort: Cohort,
    groups: Sequence[Group],
    config: TrainConfig,
    device: torch.device,
    on_epoch: OnEpoch,
    plan: Plan,
) -> Generator[tuple[Group, TrainedFolds], None, None]:
    """Yield each group as it ends, trained in this process; on_epoch is told of each epoch of each member's fold."""
    for some in [[group] for group in groups] if plan.recipes else [groups]:
        with closing(train_jobs(cohort, jobs_of(some, plan), config, device, on_epoch, plan)) as trained:
            yield from groups_ended(cohort, some, trained, config, plan)


def train_folds(
    cohort: Cohort, folds: Group, config: TrainConfig, device: torch.device, on_epoch: OnEpoch, plan: Plan
) -> TrainedFolds:
    """As `train_groups`, of one."""
    ((_, trained),) = train_groups(cohort, [folds], config, device, on_epoch, plan)
    return trained


def groups_ended(
    cohort: Cohort,
    groups: Sequence[Group],
    trained: Iterable[tuple[Job, list[Model]]],
    config: TrainConfig,
    plan: Plan,
) -> Iterator[tuple[Group, TrainedFolds]]:
    """Yield each group when the last of its jobs is there. trained: `jobs_of` these groups, in any order."""
    left = Counter(job.group for job in jobs_of(groups, plan))
    done: list[dict[int, tuple[Team, list[Model]]]] = [{} for _ in groups]
    for job, models in trained:
        done[job.group][job.number] = job.team, models
        left[job.group] -= 1
        if not left[job.group]:
            teams = [done[job.group].pop(number) for number in sorted(done[job.group])]
            yield groups[job.group], _trained(cohort, groups[job.group], teams, config, plan)


def _trained(
    cohort: Cohort, folds: Group, teams: Sequence[tuple[Team, list[Model]]], config: TrainConfig, plan: Plan
) -> TrainedFolds:
    by_fold: dict[int, dict[str, list[Model]]] = {fold.number: {} for fold in folds}
    for team, models in teams:
        for model in models:
            by_fold[model.fold.number].setdefault(team.head, []).append(model)
    return [
        (_checkpoint(fold, by_fold[fold.number], cohort, config, plan.shape), _table(by_fold[fold.number], cohort))
        for fold in folds
    ]


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
