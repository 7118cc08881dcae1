"""What train-mil shows: a live line on a terminal, plain lines now and then elsewhere, and the final table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mil.cohort.splits import Fold
from mil.pages import words
from mil.pages.words import counted
from mil.run.checkpoint import Checkpoint
from mil.run.tables import by_member, kept_epoch, read_metrics
from mil.tasks.reports.figures import judged
from mil.tasks.task import Task
from mil.training.command import Trained
from mil.training.plan import trained_heads
from mil.training.watch import Session, Watcher

_PLAIN_EVERY_S = 15.0


def plain_console() -> Console:
    """A console on standard output that prints text as it is: no highlighting, no markup."""
    return Console(highlight=False, markup=False)


class Display(Watcher):
    """Progress over all folds, and everything printed before and after."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            BarColumn(bar_width=10),  # first, where the text's length does not move it
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._live.add_task("")
        self._completed: dict[tuple[int, int], int] = {}  # numbers of fold and member: epochs
        self._lengths: list[int] = []  # epochs of the models that have ended here
        self._trained = 0  # epochs, here and now
        self._started = self._last_plain = time.monotonic()

    def start(self, session: Session, notices: Sequence[str]) -> None:
        self._folds, self._epochs, self._task = session.folds, session.config.epochs, session.cohort.task
        self._heads = len(trained_heads(session.cohort, session.config))
        for notice in notices:
            self._print(f"warning: {notice}")
        cohort = session.cohort
        sizes = [len(f) for f in cohort.features]
        bags = ", each patient one bag," if cohort.of_patients else ","
        self._print(
            f"{len(cohort.slide_ids)} slides of {len(set(cohort.patient_ids))} patients{bags} {min(sizes)} to "
            f"{max(sizes)} patches (median {np.median(sizes):.0f}), {cohort.encoder['dim']} features from "
            f"{cohort.encoder['encoder']}"
        )
        self._print(cohort.task.describe(session.target, cohort.targets))
        first = self._folds[0]
        val = f"in {len(first.inner)} inner parts" if first.inner else f"val {len(first.val)}"
        parts = f"train {len(first.train)}, {val}, test {len(first.test)} {session.config.bag}s in the first"
        self._print(f"head {session.config.head} on {session.device}; {counted(len(self._folds), 'fold')}, {parts}")

    def epoch(self, fold: Fold, values: Mapping[str, float]) -> None:
        if not self._trained:
            self._started = time.monotonic()
            self._live.update(self._bar, total=len(self._models(*self._folds)) * self._epochs)
            self._live.start()
        self._completed[fold.number, fold.member] = int(values["epoch"])
        self._trained += 1
        models = self._heads * len(self._folds[0].members)
        of = f" of {models}" if self._heads == 1 else ""  # several heads are fewer where some are fitted in one go
        model = f", model {fold.member + 1}{of}" if models > 1 else ""
        text = (
            f"{self._name(fold)}{model}  epoch {values['epoch']}/{self._epochs}  "
            f"{words.seconds(self._seconds_left())} left  train {values['train_loss']:.3f}  "
            f"{self._of_validation(values)}"
        )
        self._live.update(self._bar, description=text, completed=sum(self._completed.values()))
        if not self._console.is_terminal and time.monotonic() - self._last_plain > _PLAIN_EVERY_S:
            self._print(text)
            self._last_plain = time.monotonic()

    def skipped(self, fold: Fold) -> None:
        self._complete(fold)
        self._print(f"{self._name(fold)}  already trained")

    def ended(self, fold: Fold, history: pd.DataFrame, checkpoint: Checkpoint) -> None:
        self._complete(fold)
        histories = by_member(history)
        self._lengths += [len(own) for own in histories]
        best = pd.DataFrame([own.iloc[kept_epoch(own)] for own in histories])
        epochs = ", ".join(f"{at:.0f} of {len(own)}" for at, own in zip(best["epoch"], histories, strict=True))
        mean = best.drop(columns="worst_step", errors="ignore").astype(float).mean()
        self._print(
            f"{self._name(fold)}  keeps epoch {epochs}  train {mean['train_loss']:.3f}  "
            f"{self._of_validation(mean)}{self._task.calibration_said(checkpoint.calibration)}"
        )

    def note(self, text: str) -> None:
        self._print(text)

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        self._live.stop()

    def result(self, trained: Trained, compared_with: str) -> None:
        """Everything that stands in the run directory now, in short."""
        out, metrics = trained.out, read_metrics(trained.out)
        if trained.was_complete:
            self._print(f"{out} is complete and was made from the same request: nothing to do")
        self._console.print(_figures(metrics, trained.task))
        if "found" in metrics:
            for sentence in trained.task.found_said(metrics["found"]):
                self._print(sentence)
        if "patient_reason" in metrics:
            self._print(f"no figures by patient: {metrics['patient_reason']}")
        for note in trained.task.figure_notes():
            self._print(note)
        if "against_mean" in metrics:
            self._print(_difference(trained.task, trained.task.baseline, metrics["against_mean"]))
        for key, name in (("against_columns", "the columns alone"), ("against_slide", "the slide alone")):
            if key in metrics:
                self._print(_difference(trained.task, name, metrics[key]))
        if trained.compared is not None:
            self._print(_difference(trained.task, compared_with, trained.compared))
        if metrics["counts"]["repeats"] > 1:
            self._print(f"each slide counts once in each of {metrics['counts']['repeats']} repeats")
        self._print(f"predictions  {out / 'predictions.csv'}")
        self._print(f"all metrics  {out / 'metrics.json'}")
        self._print(f"report       {out / 'report.html'}")
        self._print(f"charts       {out / 'charts'}")
        self._print(f"attention    {out / 'attention'}")
        self._print(f"losses live  tensorboard --logdir {out / 'tensorboard'}")

    def _of_validation(self, values: Mapping[str, float] | pd.Series) -> str:
        watched = self._task.watched
        title = self._task.figure_titles.get(watched, watched)
        return f"val {values['val_loss']:.3f}  val {title} {values[f'val_{watched}']:.3f}"

    def _name(self, fold: Fold) -> str:
        return f"fold {fold.number + 1}/{len(self._folds)}"

    def _complete(self, fold: Fold) -> None:
        self._completed |= dict.fromkeys(self._models(fold), self._epochs)

    def _models(self, *folds: Fold) -> list[tuple[int, int]]:
        return [(fold.number, m) for fold in folds for m in range(self._heads * len(fold.members))]

    def _seconds_left(self) -> float:
        """At the pace so far, if the models to come stop as early as those that have ended did on average."""
        length = float(np.mean(self._lengths)) if self._lengths else self._epochs
        done = [self._completed.get(model, 0) for model in self._models(*self._folds)]
        left = sum(0.0 if d >= self._epochs else max(1.0, length - d) for d in done)
        return left * (time.monotonic() - self._started) / max(1, self._trained)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _figures(metrics: Mapping[str, Any], task: Task) -> Table:
    counts = metrics["counts"]
    levels = {"slides": metrics["slide"], "patients": metrics["patient"]}  # none of slides where patients are the bags
    levels = {name: level for name, level in levels.items() if level}
    whose = next(iter(levels))
    table = Table(
        title=f"Test {whose}, none seen in training (95 % intervals by patient, models as trained)",
        title_justify="left",
    )
    table.add_column("")
    for name in levels:
        table.add_column(f"{name} ({counts[name]})", justify="right")
    for name, title in task.figure_titles.items():
        if name in judged(metrics):
            table.add_row(title, *(words.interval(level[name]) for level in levels.values()))
    if "patch" in metrics:
        table.add_row("accuracy on copied patch labels", words.interval(metrics["patch"]["accuracy"]))
    return table


def _difference(task: Task, name: str, against: Mapping[str, Any]) -> str:
    headline = task.headline
    return words.difference_sentence(against, task.figure_title(headline), name, against[headline]["value"])
