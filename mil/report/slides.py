"""The slides of a run by loss: what the model got most wrong stands first."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from mil.pages.parts import Section
from mil.run.layout import PICTURES, picture_path, pictured_slides
from mil.tasks.task import Task
from tiling.jobs.pages import render


@dataclass(frozen=True)
class SlideRow:
    """A slide over all repeats: means of what the task judges, and of its `rows` predictions those that are wrong."""

    slide_id: str
    patient: str
    label: str
    prediction: str
    wrong: int
    rows: int
    shown: float
    loss: float
    folds: str
    pictures: tuple[str, ...]  # paths below the run directory


def slides_section(out: Path, task: Task, predictions: pd.DataFrame) -> Section:
    pictured = pictured_slides(out)
    rows = slides_by_loss(task, predictions, pictured)
    table = render(
        "mil.report", "slides.html", rows=rows, pictured=bool(pictured), shown=task.judged_title, wrong=task.wrong_title
    )
    return Section("Slides", (Markup(table),))


def slides_by_loss(task: Task, predictions: pd.DataFrame, pictured: Collection[str]) -> list[SlideRow]:
    """One row a slide, the highest loss first. pictured: ids of slides that have pictures."""
    judged = task.judge(predictions)
    table = predictions.assign(shown=judged.shown, loss=judged.loss, wrong=~judged.right)
    grouped = table.groupby("slide_id", sort=True).agg(
        patient=("patient_id", "first"),
        label=("label", "first"),
        prediction=("prediction", lambda names: names.mode().iloc[0]),
        wrong=("wrong", "sum"),
        rows=("wrong", "size"),
        shown=("shown", "mean"),
        loss=("loss", "mean"),
        folds=("fold", lambda folds: ", ".join(str(f + 1) for f in folds)),
    )
    ordered = grouped.sort_values("loss", ascending=False, kind="stable").reset_index().to_dict("records")
    return [
        SlideRow(**{str(name): value for name, value in row.items()}, pictures=_pictures(row["slide_id"], pictured))
        for row in ordered
    ]


def _pictures(name: str, pictured: Collection[str]) -> tuple[str, ...]:
    return tuple(picture_path(Path(), kind, name).as_posix() for kind in PICTURES if name in pictured)
