"""Losses by epoch for others to watch: TensorBoard always, Weights & Biases on request (`--track wandb`).

Weights & Biases is imported only when asked for. With WANDB_MODE=offline it needs no network, and what lies in
`<run>/wandb` is sent later with `wandb sync`. Sent are settings, losses and metrics; no path, slide id or picture.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from mil.cohort.splits import Fold
from mil.run.checkpoint import Checkpoint
from mil.run.layout import tensorboard_folder
from mil.training.watch import Watcher
from tiling.jobs.errors import RequestError

_SENT = ("classes", "positive", "event", "task", "target", "slides", "features", "packages")  # of provenance


class TensorBoard(Watcher):
    """Events of each model under `<run>/tensorboard`, those of a group that was killed replaced."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._writers: dict[tuple[int, int], SummaryWriter] = {}  # by numbers of fold and member

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        model = fold.number, fold.member
        if model not in self._writers:
            events = tensorboard_folder(self._out, *model)
            shutil.rmtree(events, ignore_errors=True)
            self._writers[model] = SummaryWriter(str(events))
        for name, value in values.items():
            if math.isfinite(value):
                self._writers[model].add_scalar(name, value, int(values["epoch"]))

    def ended(self, fold: Fold, history: pd.DataFrame, checkpoint: Checkpoint) -> None:
        for model in [model for model in self._writers if model[0] == fold.number]:
            self._writers.pop(model).close()

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbTracker(Watcher):
    """A run of Weights & Biases with curves `fold-<k>/<loss>` over `fold-<k>/epoch`, and the figures as its summary."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise RequestError(
                "--track wandb needs the package wandb, which is not installed; pip install 'slidemil[wandb]', or "
                "leave --track out: TensorBoard is always written"
            ) from None
        out.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(project="slidemil", name=out.name, dir=str(out), config=dict(settings))
        except (wandb.errors.Error, OSError) as error:  # no key, no network
            raise RequestError(
                f"Weights & Biases cannot be reached ({error}); log in with `wandb login`, set WANDB_MODE=offline, or "
                "leave --track out"
            ) from error
        self._known: set[str] = set()

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        name = f"fold-{fold.number}" + (f"-member-{fold.member}" if fold.member else "")
        if name not in self._known:
            self._known.add(name)
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/epoch")
        self._run.log({f"{name}/{key}": value for key, value in values.items()})

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        for level in ("slide", "patient"):
            for name, figure in ((metrics or {}).get(level) or {}).items():
                if "value" in figure:
                    self._run.summary.update({f"{level}/{name}/{end}": value for end, value in figure.items()})
        self._run.finish(exit_code=0 if metrics else 1)


def tracker(track: str, out: Path, provenance: Mapping[str, Any]) -> Watcher:
    """The tracker called `track`, one that does nothing for an empty name. RequestError if it cannot be had."""
    if track != "wandb":
        return Watcher()
    settings = {key: provenance[key] for key in _SENT if key in provenance}
    return WandbTracker(out, {**provenance["settings"], **settings})
