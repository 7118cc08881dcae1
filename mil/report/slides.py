"""The slides of a run by loss: what the model got most wrong stands first."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from mil.pages.parts import Section
from mil.run.layout import PICTURES, picture_path, pictured_slides
from tiling.jobs.pages import render

_SMALLEST_PROBABILITY = 1e-7  # below, a loss would be infinite


@dataclass(frozen=True)
class SlideRow:
    """A slide over all repeats. own: mean probability of its label; rows, wrong: its predictions, the wrong ones."""

    slide_id: str
    patient: str
    label: str
    prediction: str
    wrong: int
    rows: int
    own: float
    loss: float
    folds: str
    pictures: tuple[str, ...]  # paths below the run directory


def slides_section(out: Path, predictions: pd.DataFrame) -> Section:
    pictured = pictured_slides(out)
    rows = slides_by_loss(predictions, pictured)
    return Section("Slides", (Markup(render("mil.report", "slides.html", rows=rows, pictured=bool(pictured))),))


def slides_by_loss(predictions: pd.DataFrame, pictured: Collection[str]) -> list[SlideRow]:
    """One row a slide, the highest loss first. pictured: ids of slides that have pictures."""
    own = np.array([row[f"prob_{row['label']}"] for row in predictions.to_dict("records")], np.float64)
    table = predictions.assign(
        own=own,
        loss=-np.log(np.maximum(own, _SMALLEST_PROBABILITY)),
        wrong=predictions["label"] != predictions["prediction"],
    )
    grouped = table.groupby("slide_id", sort=True).agg(
        patient=("patient_id", "first"),
        label=("label", "first"),
        prediction=("prediction", lambda names: names.mode().iloc[0]),
        wrong=("wrong", "sum"),
        rows=("wrong", "size"),
        own=("own", "mean"),
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
