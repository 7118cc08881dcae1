"""The kinds of target by name. torch is imported on first use."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mil.tasks.task import Task

TASKS = {  # name of the kind: module below mil.tasks, or any other module, whose `TASK` it is
    "classification": "mil.tasks.classification",
    "regression": "mil.tasks.regression",
    "survival": "mil.tasks.survival",
    "ordinal": "mil.tasks.ordinal",
    "several": "mil.tasks.several",
}


def task_kind(name: str) -> "type[Task]":
    """The kind called `name`. KeyError for an unknown one."""
    kind: type[Task] = import_module(TASKS[name]).TASK
    return kind


def named(task: "Task") -> dict[str, str]:
    """The key by which provenance and checkpoints name a kind; a classification needs none, as in older runs."""
    return {} if task.kind == "classification" else {"task": task.kind}


def restored(described: Mapping[str, Any]) -> "Task":
    """The task of a run, from its provenance or from the metadata of a checkpoint; a run that names none is older."""
    return task_kind(described.get("task", "classification")).restored(described)
