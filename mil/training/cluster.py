"""Teams of models trained by the workers of a Dask scheduler, to the same bytes as on this machine.

Rounding depends on who is in a team, on the number of threads and on the device, so all three are this machine's. Each
worker reads the cohort itself, once, and refuses one that is not the cohort that was read here.
"""

import functools
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from mil.cohort.cohort import Cohort
from mil.tasks.task import Task
from mil.training.config import TrainConfig
from mil.training.descent import OnEpoch
from mil.training.model import Model
from mil.training.plan import Plan
from mil.training.repeatable import repeatable
from mil.training.teams import Job, jobs_of, train_team
from mil.training.trainer import Group, TrainedFolds, groups_ended
from mil.training.watch import Session
from tiling.jobs.errors import RequestError
from tiling.jobs.execution import Lost, map_cluster

_one_at_a_time = threading.Lock()  # of a worker's threads: torch's modes and random state are the whole process's


@dataclass(frozen=True)
class _Request:
    """What a worker has to know; equal where `token` is."""

    token: str
    load: Callable[[], Cohort] = field(compare=False)
    sha256: tuple[str, str] = field(compare=False)  # of features and labels
    config: TrainConfig = field(compare=False)
    plan: Plan = field(compare=False)
    device: torch.device = field(compare=False)
    threads: int = field(compare=False)


def train_on_cluster(
    session: Session, groups: Sequence[Group], plan: Plan, on_epoch: OnEpoch
) -> Generator[tuple[Group, TrainedFolds], None, None]:
    """As `trainer.train_groups`, but on_epoch is told of a team's epochs when that has ended.

    Where teams take more than one thread, workers take as many as torch has here.
    RequestError when a loss is no longer a number, and where the cluster does not do it.
    """
    cohort, config = session.cohort, session.config
    request = _Request(
        token=uuid.uuid4().hex,
        load=session.load,
        sha256=(cohort.features_sha256, cohort.labels_sha256),
        config=config,
        plan=replace(plan, groups=()),
        device=torch.device(session.device.type),
        threads=torch.get_num_threads(),
    )
    work, gpu = functools.partial(_train_on_worker, request=request), session.device.type == "cuda"
    with closing(map_cluster(work, jobs_of(groups, plan), config.scheduler, gpu)) as results:
        yield from groups_ended(cohort, groups, _told(results, cohort.task, on_epoch), config, plan)


def _told(
    results: Iterable[tuple[Job, list[Model] | Lost]], task: Task, on_epoch: OnEpoch
) -> Iterator[tuple[Job, list[Model]]]:
    """The results, after on_epoch was told of their epochs. RequestError where the cluster was lost."""
    for job, models in results:
        if isinstance(models, Lost):
            raise RequestError(f"{models.reason}; folds that are finished are kept")
        for model in models:
            for epoch in model.history:
                on_epoch(model.fold, epoch.columns(task))
        yield job, models


def _train_on_worker(job: Job, request: _Request) -> list[Model]:
    with _one_at_a_time, repeatable(request.threads):
        cohort = _cohort(request)
        return train_team(cohort, job.team, request.config, request.device, lambda *_: None, request.plan)


@functools.lru_cache(maxsize=1)
def _cohort(request: _Request) -> Cohort:
    """Read once by a worker for all teams of a request."""
    cohort = request.load()
    if (cohort.features_sha256, cohort.labels_sha256) != request.sha256:
        raise RequestError(
            f"the worker on {socket.gethostname()} reads other features or labels than this machine; give paths of "
            "a disk that all machines share, and leave the files alone while they are trained on"
        )
    return cohort
