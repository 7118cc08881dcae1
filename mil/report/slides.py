"""The slides of a run by loss, or its patients where these are the bags: what was got most wrong stands first."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from markupsafe import Markup

from mil.pages.parts import Section
from mil.run.attention import attention_path, read_attention
from mil.run.layout import PICTURES, picture_path, pictured_slides
from mil.run.tables import by_slide
from mil.tasks.task import Task
from tiling.jobs.pages import render


@dataclass(frozen=True)
class Pictured:
    """A slide of a bag: paths below the run directory, and what stands under them."""

    pictures: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True)
class SlideRow:
    """A bag over all repeats: means of what the task judges, and of its `rows` predictions those that are wrong."""

    name: str
    other: str  # the patient of a slide, the slides of a patient
    label: str
    prediction: str
    wrong: int
    rows: int
    shown: float
    loss: float
    folds: str
    slides: tuple[Pictured, ...]


def slides_section(out: Path, task: Task, predictions: pd.DataFrame) -> Section:
    pictured = pictured_slides(out)
    of_patients = "slide_id" not in predictions
    rows = slides_by_loss(task, predictions, pictured, _shares(out, predictions) if of_patients else {})
    words = {"bag": "patient", "other": "slides, by attention"} if of_patients else {"bag": "slide", "other": "patient"}
    settings = dict(pictured=bool(pictured), shown=task.judged_title, wrong=task.wrong_title, **words)
    table = render("mil.report", "slides.html", rows=rows, **settings)
    return Section("Patients" if of_patients else "Slides", (Markup(table),))


def _shares(out: Path, predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By patient: the share of the attention of each of its slides, the highest first."""
    shares: dict[str, dict[str, float]] = {}
    table = by_slide(predictions).drop_duplicates("slide_id")
    for patient, slide_id in table[["patient_id", "slide_id"]].itertuples(index=False):
        shares.setdefault(patient, {})[slide_id] = read_attention(attention_path(out, slide_id)).share
    return {patient: dict(sorted(of.items(), key=lambda both: -both[1])) for patient, of in shares.items()}


def slides_by_loss(
    task: Task,
    predictions: pd.DataFrame,
    pictured: Collection[str],
    shares: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[SlideRow]:
    """One row a bag, the highest loss first.

    pictured: ids of slides that have pictures. shares: by patient, where these are bags, what their slides have of the
    attention.
    """
    judged = task.judge(predictions)
    table = predictions.assign(shown=judged.shown, loss=judged.loss, wrong=~judged.right)
    name, other = predictions.columns[:2]
    grouped = table.groupby(name, sort=True).agg(
        other=(other, "first"),
        label=("label", "first"),
        prediction=("prediction", lambda names: names.mode().iloc[0]),
        wrong=("wrong", "sum"),
        rows=("wrong", "size"),
        shown=("shown", "mean"),
        loss=("loss", "mean"),
        folds=("fold", lambda folds: ", ".join(str(f + 1) for f in folds)),
    )
    ordered = grouped.sort_values("loss", ascending=False, kind="stable").rename_axis("name").reset_index()
    return [
        _row({str(key): value for key, value in row.items()}, pictured, shares) for row in ordered.to_dict("records")
    ]


def _row(values: dict[str, Any], pictured: Collection[str], shares: Mapping[str, Mapping[str, float]]) -> SlideRow:
    name = values["name"]
    if name not in shares:
        return SlideRow(**values, slides=(_pictured(name, pictured),))
    said = {slide_id: f"{slide_id} {share:.0%}" for slide_id, share in shares[name].items()}
    slides = tuple(_pictured(slide_id, pictured, text) for slide_id, text in said.items())
    return SlideRow(**{**values, "other": ", ".join(said.values())}, slides=slides)


def _pictured(slide_id: str, pictured: Collection[str], said: str = "") -> Pictured:
    pictures = (picture_path(Path(), kind, slide_id).as_posix() for kind in PICTURES if slide_id in pictured)
    return Pictured(tuple(pictures), said)
