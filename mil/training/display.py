"""What train-mil shows: a live line on a terminal, plain lines now and then elsewhere, and the final table."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.run.checkpoint import Checkpoint
from mil.run.tables import kept_epoch
from mil.training.trainer import Epoch

_PLAIN_EVERY_S = 15.0
_ROWS = {
    "auroc": "AUROC",
    "auroc_delong": "AUROC, DeLong",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "mcc": "MCC",
    "accuracy": "accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
}


def plain_console() -> Console:
    """A console on standard output that prints text as it is: no highlighting, no markup."""
    return Console(highlight=False, markup=False)


class Display:
    """Progress over all folds, and everything printed before and after."""

    def __init__(self, console: Console, folds: Sequence[Fold], epochs: int) -> None:
        self._console, self._folds, self._epochs = console, folds, epochs
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", total=len(folds) * epochs)
        self._completed: dict[int, int] = {}  # fold number: epochs
        self._lengths: list[int] = []  # epochs of the folds that have ended here
        self._trained = 0  # epochs, here and now
        self._started = time.monotonic()
        self._last_plain = time.monotonic()

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def cohort(self, cohort: Cohort, target: str, head: str, device: torch.device, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._print(f"warning: {warning}")
        patients = len(set(cohort.patient_ids))
        counts = np.bincount(cohort.labels)
        classes = ", ".join(f"{name} {count}" for name, count in zip(cohort.classes, counts, strict=True))
        sizes = [len(f) for f in cohort.features]
        self._print(
            f"{len(sizes)} slides of {patients} patients, {min(sizes)} to {max(sizes)} patches "
            f"(median {np.median(sizes):.0f}), {cohort.encoder['dim']} features from {cohort.encoder['encoder']}"
        )
        positive = "" if cohort.positive is None else f"; positive class: {cohort.classes[cohort.positive]}"
        self._print(f"target {target}: {classes}{positive}")
        first = self._folds[0]
        parts = f"train {len(first.train)}, val {len(first.val)}, test {len(first.test)} slides in the first"
        self._print(f"head {head} on {device}; {len(self._folds)} fold(s), {parts}")

    def epoch(self, fold: Fold, epoch: Epoch) -> None:
        self._completed[fold.number] = epoch.epoch
        self._trained += 1
        text = (
            f"{self._name(fold)}  epoch {epoch.epoch}/{self._epochs}  train {epoch.train_loss:.3f}  "
            f"val {epoch.val_loss:.3f}  val AUROC {epoch.val_auroc:.3f}  "
            f"{seconds_in_words(self._seconds_left())} left"
        )
        self._live.update(self._task, description=text, completed=sum(self._completed.values()))
        if not self._console.is_terminal and time.monotonic() - self._last_plain > _PLAIN_EVERY_S:
            self._print(text)
            self._last_plain = time.monotonic()

    def fold_skipped(self, fold: Fold) -> None:
        self._completed[fold.number] = self._epochs
        self._print(f"{self._name(fold)}  already trained")

    def fold_done(self, fold: Fold, history: pd.DataFrame, checkpoint: Checkpoint) -> None:
        self._completed[fold.number] = self._epochs
        self._lengths.append(len(history))
        best = history.iloc[kept_epoch(history)]
        threshold = "" if checkpoint.threshold is None else f"  threshold {checkpoint.threshold:.2f}"
        self._print(
            f"{self._name(fold)}  keeps epoch {best['epoch']:.0f} of {len(history)}  train {best['train_loss']:.3f}  "
            f"val {best['val_loss']:.3f}  val AUROC {best['val_auroc']:.3f}{threshold}"
        )

    def result(self, out: Path, metrics: dict[str, Any], cohort: Cohort) -> None:
        counts, repeats = metrics["counts"], metrics["counts"]["repeats"]
        table = Table(title="Test slides, none seen in training (95 % intervals by patient)", title_justify="left")
        table.add_column("")
        table.add_column(f"slides ({counts['slides']})", justify="right")
        table.add_column(f"patients ({counts['patients']})", justify="right")
        levels = [metrics["slide"], metrics["patient"]]
        for name, title in _ROWS.items():
            if name in metrics["slide"]:
                table.add_row(title, *(_cell(level, name) for level in levels))
        if "patch" in metrics:
            table.add_row("accuracy on copied patch labels", _cell(metrics["patch"], "accuracy"), "")
        self._console.print(table)
        if "patient_reason" in metrics:
            self._print(f"no figures by patient: {metrics['patient_reason']}")
        if cohort.positive is not None:
            self._print(f"sensitivity is of class {cohort.classes[cohort.positive]}, specificity of the other one")
        else:
            self._print("AUROC, sensitivity and specificity are macro averages of one class against the rest")
        if "against_mean" in metrics:
            against = metrics["against_mean"]
            self._print(difference_line("logistic regression on mean features", against["auroc"]["value"], against))
        if repeats > 1:
            self._print(f"each slide counts once in each of {repeats} repeats")
        self._print(f"predictions  {out / 'predictions.csv'}")
        self._print(f"all metrics  {out / 'metrics.json'}")
        self._print(f"report       {out / 'report.html'}")
        self._print(f"plots        {out / 'curves.png'}  {out / 'roc.png'}")
        self._print(f"attention    {out / 'attention'}")
        self._print(f"losses live  tensorboard --logdir {out / 'tensorboard'}")

    def note(self, text: str) -> None:
        self._print(text)

    def _name(self, fold: Fold) -> str:
        return f"fold {fold.number + 1}/{len(self._folds)}"

    def _seconds_left(self) -> float:
        """At the pace so far, if the folds to come stop as early as those that have ended did on average."""
        length = float(np.mean(self._lengths)) if self._lengths else self._epochs
        done = [self._completed.get(fold.number, 0) for fold in self._folds]
        left = sum(0.0 if d >= self._epochs else max(1.0, length - d) for d in done)
        return left * (time.monotonic() - self._started) / max(1, self._trained)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def difference_line(name: str, auroc: float, against: Mapping[str, float | None]) -> str:
    """One sentence on a Difference of AUROCs, as a mapping, from what `name` reached on the same slides."""
    delong = "" if against["p_delong"] is None else f"; DeLong {_p_value(against['p_delong'])}"
    interval = f"{against['low']:+.3f} to {against['high']:+.3f}"
    found = f"{against['value']:+.3f} ({interval}, {_p_value(against['p'])}{delong})"
    return f"AUROC {found} against {name} ({auroc:.3f}) on the same slides"


def _p_value(p: float | None) -> str:
    if p is None:
        return "p unknown"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def seconds_in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _cell(level: dict[str, Any] | None, name: str) -> str:
    figure = level and level[name]
    if not figure or figure["value"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"
