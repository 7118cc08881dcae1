"""The models of a run, one folder a fold."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mil.run.layout import METADATA
from tiling.jobs.atomic import atomic_folder
from tiling.jobs.errors import RequestError


@dataclass(frozen=True)
class Checkpoint:
    """One fold's model. `shape` are the fields of mil.heads.head.HeadShape."""

    head: str
    shape: dict[str, Any]
    classes: tuple[str, ...]
    positive: int | None
    threshold: float | None  # of the positive class's calibrated probability; None unless there are two classes
    tensors: dict[str, NDArray[Any]]
    temperature: float = 1.0  # by which logits are divided, see mil.tasks.temperature


def fold_folder(run: Path, number: int) -> Path:
    return run / f"fold-{number}"


def write_fold(run: Path, number: int, checkpoint: Checkpoint, history: pd.DataFrame) -> None:
    described = {key: value for key, value in vars(checkpoint).items() if key != "tensors"}
    metadata = {METADATA: json.dumps(described, sort_keys=True)}
    with atomic_folder(fold_folder(run, number)) as folder:
        safetensors.numpy.save_file(checkpoint.tensors, folder / "checkpoint.safetensors", metadata)
        history.to_csv(folder / "history.csv", index=False)


def fold_numbers(run: Path) -> list[int]:
    """Numbers of the finished folds, rising."""
    names = [re.fullmatch(r"fold-(\d+)", path.name) for path in run.glob("fold-*")]
    return sorted(int(match[1]) for match in names if match)


def read_checkpoint(run: Path, number: int) -> Checkpoint:
    path = fold_folder(run, number) / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, framework="np") as file:
            described = json.loads(file.metadata()[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path}: not a checkpoint of train-mil ({error}); train again") from error
    return Checkpoint(**{**described, "classes": tuple(described["classes"])}, tensors=tensors)
