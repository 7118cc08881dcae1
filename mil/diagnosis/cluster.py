"""Findings made by the workers of a Dask scheduler, one a task: what this machine would find, in its number of threads.

Each worker loads the cohort itself, once, and refuses one that is not the cohort that was read here.
"""

import functools
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import Finding
from mil.diagnosis.inputs import Inputs, Sources, load_inputs
from tiling.jobs.errors import RequestError
from tiling.jobs.execution import Lost, map_cluster

_one_at_a_time = threading.Lock()  # of a worker's threads: torch's number of threads is the whole process's
Find = Callable[[str, Inputs], Finding]


@dataclass(frozen=True)
class _Request:
    """What a worker has to know; equal where `token` is."""

    token: str
    find: Find = field(compare=False)
    sources: Sources = field(compare=False)
    config: DiagnoseConfig = field(compare=False)
    sha256: tuple[str, str] = field(compare=False)  # of features and labels
    threads: int = field(compare=False)


def findings_on_cluster(inputs: Inputs, keys: Sequence[str], find: Find, ended: Callable[[int], None]) -> list[Finding]:
    """What `find` says of each key, in their order; `ended` is told how many there are, each time.

    RequestError where the cluster does not do it.
    """
    cohort, config = inputs.cohort, inputs.config
    sha256 = cohort.features_sha256, cohort.labels_sha256
    sources = _absolute(inputs.sources)
    request = _Request(uuid.uuid4().hex, find, sources, config, sha256, torch.get_num_threads())
    found: dict[str, Finding] = {}
    work = functools.partial(_find_on_worker, request=request)
    with closing(map_cluster(work, keys, config.scheduler, config.device.startswith("cuda"))) as results:
        for key, finding in results:
            if isinstance(finding, Lost):
                raise RequestError(finding.reason)
            found[key] = finding
            ended(len(found))
    return [found[key] for key in keys]


def _absolute(sources: Sources) -> Sources:
    paths = {name: getattr(sources, name) for name in ("features", "patches", "run", "random_features")}
    table = sources.table if isinstance(sources.table, pd.DataFrame) else sources.table.absolute()
    given = {name: path.absolute() for name, path in paths.items() if path is not None}
    return replace(sources, table=table, scales=tuple(path.absolute() for path in sources.scales), **given)


def _find_on_worker(key: str, request: _Request) -> Finding:
    with _one_at_a_time:
        torch.set_num_threads(request.threads)
        return request.find(key, _inputs(request))


@functools.lru_cache(maxsize=1)
def _inputs(request: _Request) -> Inputs:
    inputs = load_inputs(request.sources, request.config)
    if (inputs.cohort.features_sha256, inputs.cohort.labels_sha256) != request.sha256:
        raise RequestError(
            f"the worker on {socket.gethostname()} reads other features or labels than this machine; give paths of "
            "a disk that all machines share, and leave the files alone meanwhile"
        )
    return inputs
