"""Losses by epoch for others to watch: TensorBoard always, Weights & Biases on request (`--track wandb`).

Weights & Biases is imported only when asked for. With WANDB_MODE=offline it needs no network, and what lies in
`<run>/wandb` is sent later with `wandb sync`. Sent are settings, losses and metrics; no path, slide id or picture.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mil.cohort.splits import Fold
from mil.run.tables import read_metrics
from mil.training.trainer import Epoch
from tiling.jobs.errors import RequestError


class Tracker:
    """Tracks nothing; the form that all trackers have."""

    def epoch(self, fold: Fold, epoch: Epoch) -> None:
        """Called once an epoch of a fold, folds in any order."""

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        """Called once; metrics as in metrics.json, None if the run did not end well."""


class WandbTracker(Tracker):
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
        self._known: set[int] = set()

    def epoch(self, fold: Fold, epoch: Epoch) -> None:
        name = f"fold-{fold.number}"
        if fold.number not in self._known:
            self._known.add(fold.number)
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/epoch")
        self._run.log({f"{name}/{key}": value for key, value in asdict(epoch).items()})

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        for level in ("slide", "patient"):
            for name, figure in ((metrics or {}).get(level) or {}).items():
                if "value" in figure:
                    self._run.summary.update({f"{level}/{name}/{end}": value for end, value in figure.items()})
        self._run.finish(exit_code=0 if metrics else 1)


@contextmanager
def tracking(track: str, out: Path, provenance: Mapping[str, Any]) -> Iterator[Tracker]:
    """The tracker called `track`, one that does nothing for an empty name; it gets the metrics of `out` at the end.

    RequestError if it cannot be had.
    """
    settings = {key: provenance[key] for key in ("target", "classes", "positive", "slides", "features", "packages")}
    tracker = WandbTracker(out, {**provenance["settings"], **settings}) if track == "wandb" else Tracker()
    try:
        yield tracker
    except BaseException:
        tracker.finish(None)
        raise
    tracker.finish(read_metrics(out))
