"""The models of a run, one folder a fold."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mil.run.layout import METADATA
from mil.tasks.registry import named, restored
from mil.tasks.task import Calibration, Task
from tiling.jobs.atomic import atomic_folder
from tiling.jobs.errors import RequestError

SLIDE_ALONE = "slide-alone"  # folder within that of a fold
_OF_HEAD = ("head", "shape", "members", "weights")


@dataclass(frozen=True)
class Checkpoint:
    """One fold's model, a sum of its members. `shape` are the fields of mil.heads.head.HeadShape."""

    head: str
    shape: dict[str, Any]
    task: Task
    calibration: Calibration  # what the task learned from the validation part
    tensors: dict[str, NDArray[Any]]
    members: tuple[str, ...]  # heads, one unless the tensors are those of a mil.heads.committee.Committee
    weights: Mapping[str, float] = field(default_factory=dict)  # of each head, where several were weighed


def fold_folder(run: Path, number: int) -> Path:
    return run / f"fold-{number}"


def write_fold(
    run: Path,
    number: int,
    checkpoint: Checkpoint,
    history: pd.DataFrame,
    alone: tuple[Checkpoint, pd.DataFrame] | None = None,
) -> None:
    """alone: of the model that is told of no columns, beside one that is."""
    with atomic_folder(fold_folder(run, number)) as folder:
        _write(folder, checkpoint, history)
        if alone:
            (folder / SLIDE_ALONE).mkdir()
            _write(folder / SLIDE_ALONE, *alone)


def _write(folder: Path, checkpoint: Checkpoint, history: pd.DataFrame) -> None:
    of_head = {name: getattr(checkpoint, name) for name in _OF_HEAD}
    described = {**of_head, **named(checkpoint.task), **checkpoint.task.state(), **checkpoint.calibration}
    metadata = {METADATA: json.dumps(described, sort_keys=True)}
    safetensors.numpy.save_file(checkpoint.tensors, folder / "checkpoint.safetensors", metadata)
    history.to_csv(folder / "history.csv", index=False)


def fold_numbers(run: Path) -> list[int]:
    """Numbers of the finished folds, rising."""
    names = [re.fullmatch(r"fold-(\d+)", path.name) for path in run.glob("fold-*")]
    return sorted(int(match[1]) for match in names if match)


def read_checkpoint(run: Path, number: int, alone: bool = False) -> Checkpoint:
    """alone: of the model that is told of no columns."""
    path = fold_folder(run, number) / (SLIDE_ALONE if alone else "") / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, framework="np") as file:
            described: dict[str, Any] = json.loads(file.metadata()[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path}: not a checkpoint of train-mil ({error}); train again") from error
    task, head, shape = restored(described), described.pop("head"), described.pop("shape")
    members, weights = tuple(described.pop("members", [head])), described.pop("weights", {})
    calibration = {key: value for key, value in described.items() if key not in ("task", *task.state())}
    return Checkpoint(head, shape, task, calibration, tensors, members, weights)
