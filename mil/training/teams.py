"""Teams: models of one head that are trained as one; the unit of work of a training.

Teams are trained one after another or, as the plan says, side by side, to the same bytes.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from mil.cohort.cohort import Cohort
from mil.cohort.constant_features import SMALLEST_STD
from mil.cohort.splits import Fold, Indices
from mil.heads.head import Head, HeadShape, OwnRecipe
from mil.heads.registry import build_head
from mil.heads.with_covariates import WithCovariates
from mil.training.at_once import fit_at_once
from mil.training.config import TrainConfig
from mil.training.descent import Descent, OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan
from tiling.jobs.workers import map_threads

_torchs_random_state = threading.Lock()  # is the whole process's


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
        every = [member for fold in folds for member in _members(fold, name, number, plan)]
        teams += [
            Team(name, tuple(every[start : start + plan.together])) for start in range(0, len(every), plan.together)
        ]
    return teams


@dataclass(frozen=True, eq=False)
class Job:
    """A team and where it belongs."""

    group: int  # of folds
    number: int  # of the team in its group
    team: Team


def jobs_of(groups: Sequence[Sequence[Fold]], plan: Plan) -> list[Job]:
    return [
        Job(group, number, team)
        for group, folds in enumerate(groups)
        for number, team in enumerate(teams_of(folds, plan))
    ]


def train_team(
    cohort: Cohort, team: Team, config: TrainConfig, device: torch.device, on_epoch: OnEpoch, plan: Plan
) -> list[Model]:
    """on_epoch is told the member's fold. RequestError when a loss is no longer a number."""
    config, models = replace(config, head=team.head), [Model(member) for member in team.members]
    with _torchs_random_state:
        heads = [_fresh_head(cohort, model.fold, config, plan.shape).to(device) for model in models]
    if not isinstance(heads[0], OwnRecipe):
        with _threads(plan.threads):
            Descent(cohort, models, heads, config, device, plan).run(on_epoch)
        return models
    for head, model in zip(heads, models, strict=True):
        assert isinstance(head, OwnRecipe)
        fit_at_once(head, cohort, model, config)
        on_epoch(model.fold, model.history[-1].columns(cohort.task))
    return models


def train_jobs(
    cohort: Cohort, jobs: Sequence[Job], config: TrainConfig, device: torch.device, on_epoch: OnEpoch, plan: Plan
) -> Generator[tuple[Job, list[Model]], None, None]:
    """Yield each job with its team's models as it ends; as `train_team`.

    Heads with a recipe of their own come last, one after another: they use the machine's threads and memory themselves.
    """
    telling = threading.Lock()

    def told(fold: Fold, values: Mapping[str, float]) -> None:
        with telling:
            on_epoch(fold, values)

    def train(job: Job) -> tuple[Job, list[Model]]:
        return job, train_team(cohort, job.team, config, device, told, plan)

    own = [job for job in jobs if job.team.head in plan.recipes]
    others = [job for job in jobs if job.team.head not in plan.recipes]
    if plan.at_once > 1:
        with closing(map_threads(train, others, plan.at_once)) as trained:
            yield from trained
    else:
        yield from map(train, others)
    yield from map(train, own)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Of what torch does in this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _members(fold: Fold, head: str, number: int, plan: Plan) -> list[Fold]:
    """Of a head that is the one with this number among those that are trained."""
    first = number * len(fold.members)
    if head in plan.recipes:
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


def _set_standardisation(head: Head, cohort: Cohort, slides: Indices) -> None:
    """Over all patches of the slides; a constant feature is only centred."""
    mean, std = cohort.spread(slides)
    head.get_buffer("mean").copy_(torch.from_numpy(mean))
    head.get_buffer("std").copy_(torch.from_numpy(np.where(std > SMALLEST_STD, std, 1.0)))
