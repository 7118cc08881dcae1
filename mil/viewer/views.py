"""What the slide viewer shows of a run: the list of slides, and each slide's scores as layers of tiles."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.heads.registry import judges_patches
from mil.maps.export import require_same_slide
from mil.maps.extremes import extremes, patch_picture
from mil.maps.grid import bar_ticks, colour_scale, render, said, score_grid
from mil.maps.scores import Kind, PatchScores, default_class, default_kind, patch_scores
from mil.run.attention import SlideAttention, attention_path, read_bag
from mil.run.layout import require_complete
from mil.run.novelty import read_training_slides
from mil.run.tables import by_slide, read_predictions
from mil.tasks.registry import restored
from mil.tasks.task import Task
from mil.viewer.tiles import TILE_PX, zooms
from tiling.jobs.errors import SlideError
from tiling.manifest import SlideRow
from tiling.slides.files import slide_fingerprint
from tiling.slides.openslide import bounds_of
from tiling.slides.slide import Pixels, Slide
from tiling.tissue.polygons import read_polygons

_TOP = 12


def list_slides(run: Path, rows: Iterable[SlideRow]) -> list[dict[str, Any]]:
    """id, label, prediction, whether it is `right`, and the loss of each slide.

    Answers are means over the repeats that tested the slide; all but id and label, as the table has it, is null for
    other slides. `said` is a sentence on it, `brief` a line of the list.
    """
    provenance, predictions = require_complete(run), by_slide(read_predictions(run))
    task, tested = restored(provenance), dict(list(predictions.groupby("slide_id")))
    return [
        {"id": row.slide_id, **_tested(tested[row.slide_id], task)}
        if row.slide_id in tested
        else {"id": row.slide_id, **_not_tested(row.labels.get(provenance["target"]) or None)}
        for row in rows
    ]


def _tested(found: pd.DataFrame, task: Task) -> dict[str, Any]:
    """found: a slide's rows of predictions.csv."""
    numbers = found[[*task.value_columns, *task.further_columns]].mean(numeric_only=True)
    values = numbers[list(task.value_columns)]
    label, prediction = found["label"].iloc[0], found["prediction"].mode().iloc[0]
    judged = task.judge(pd.DataFrame([{"label": label, "prediction": prediction, **numbers}]))
    answer, loss = values.to_numpy(np.float64), float(judged.loss[0])
    said = task.say(answer, task.spread_output(answer))
    return {
        **{"label": label, "prediction": prediction, "right": bool(judged.right[0]), "loss": loss},
        "said": f"Labelled {label}, predicted {prediction}: {said.what} {said.number}, loss {loss:.2f}.",
        "brief": f"{label}, {said.short} {said.number}, loss {loss:.2f}",
    }


def _not_tested(label: str | None) -> dict[str, Any]:
    unknown = dict.fromkeys(("prediction", "right", "loss"))
    return {"label": label, **unknown, "said": "", "brief": ", ".join(filter(None, [label, "not tested by this run"]))}


@dataclass(frozen=True)
class SlideView:
    """One slide of a run, its scores in memory; without layers `why` says what is in the way."""

    row: SlideRow
    size_l0: tuple[int, int]
    mpp: float | None
    bounds_l0: tuple[int, int, int, int] | None  # where the scanner saw tissue: x, y, width, height
    slide: SlideAttention | None = None
    why: str = ""
    others: Sequence[SlideAttention] = ()  # of its bag

    @cached_property
    def layers(self) -> dict[tuple[str, str], PatchScores]:
        """By score and output, the default of heatmaps first: what patches add, what they say alone, and attention."""
        if (slide := self.slide) is None:
            return {}
        first = default_class(slide)
        names = sorted(slide.classes, key=lambda name: name != first)
        asked: dict[tuple[str, str], tuple[Kind, str]] = {}
        if default_kind(slide) == "contribution":
            asked |= {("contribution", n): ("contribution", n) for n in names}
        asked |= {(slide.task.patch_score, n): ("logit", n) for n in names}
        asked["attention", ""] = "attention", ""
        if slide.class_attention is not None:
            asked |= {("attention of a class", n): ("attention", n) for n in names}
        return {layer: patch_scores(slide, *of, others=self.others) for layer, of in asked.items()}

    def description(self) -> dict[str, Any]:
        """What the page needs to know, as JSON. Raises SlideError where the annotation cannot be read."""
        polygons = read_polygons(self.row.annotation) if self.row.annotation else []
        view: dict[str, Any] = {"id": self.row.slide_id, "size": self.size_l0, "tile": TILE_PX, "mpp": self.mpp}
        view |= {"zooms": zooms(self.size_l0), "why": self.why, "layers": [], "bounds": self.bounds_l0}
        view["annotation"] = [[ring.tolist() for ring in polygon] for polygon in polygons]
        if self.slide is not None and self.slide.patient_id:
            view["note"] = (
                f"{self.slide.share:.0%} of the attention of patient {self.slide.patient_id} is in this slide."
            )
        if self.slide is not None:
            view["side"] = self.slide.patch_size_l0
            view["layers"] = [_describe(*name, scores, self.slide) for name, scores in self.layers.items()]
        return view

    def tile(self, layer: int, zoom: int, column: int, row: int) -> NDArray[np.uint8]:
        """(TILE_PX, TILE_PX, 4) colours of a layer. IndexError where there is no such layer or tile."""
        scores, step = list(self.layers.values())[layer], TILE_PX << zoom
        if zoom >= zooms(self.size_l0) or column * step >= self.size_l0[0] or row * step >= self.size_l0[1]:
            raise IndexError(f"no tile {zoom}/{column}/{row}")
        assert self.slide is not None
        corner, side = np.array([column, row]) * step, self.slide.patch_size_l0
        inside = ((self.slide.coords < corner + step) & (self.slide.coords + side > corner)).all(1)
        if not inside.any():
            return np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
        shape = (TILE_PX, TILE_PX)
        values, coords = scores.values[inside], self.slide.coords[inside]
        return render(score_grid(coords, values, side, shape, 2**zoom, (*corner.tolist(),)), colour_scale(scores), 1.0)

    def patch(self, source: Slide, index: int) -> Pixels:
        """IndexError where the slide has no such patch."""
        if self.slide is None or index >= len(self.slide.coords):
            raise IndexError(f"no patch {index}")
        return patch_picture(source, self.slide, index)


def slide_view(run: Path, row: SlideRow, source: Slide) -> SlideView:
    """The scores of a slide, if the run tested it and `source` is the very file that was tiled."""
    assert row.path is not None
    path = attention_path(run, row.slide_id)
    mpp = row.mpp or (sum(source.mpp) / 2 if source.mpp else None)
    view = SlideView(row, source.level_sizes[0], mpp, bounds_of(row.path))
    if not judges_patches(head := require_complete(run)["settings"]["head"]):
        return replace(view, why=f"The head {head} says nothing of a single patch, so there is no map.")
    if not path.exists():
        return replace(view, why="The run did not test this slide, so there is no map.")
    slide, *others = read_bag(run, row.slide_id)
    if len(slide.attention) == 1 and not slide.patch_size_l0:
        return replace(view, why="Its features are one row, a vector of the whole slide, so there is no map.")
    if not slide.patch_size_l0:
        return replace(view, why="Its features do not say how large a patch is, so there is no map.")
    try:
        expected = read_training_slides(run)[1].get(row.slide_id, "")
        require_same_slide(row.path, source, slide, slide_fingerprint(row.path) if expected else "", expected)
    except SlideError as error:
        return replace(view, why=f"There is no map: {error}")
    return replace(view, mpp=mpp if math.isnan(slide.mpp_l0) else slide.mpp_l0, slide=slide, others=others)


def _describe(score: str, of_class: str, scores: PatchScores, slide: SlideAttention) -> dict[str, Any]:
    top = extremes(scores, _TOP).top.tolist()
    corners = slide.coords.tolist()
    return {
        "score": score,
        "class": of_class,
        "meaning": scores.meaning,
        "ticks": bar_ticks(scores),
        "top": [{"index": i, "score": said(scores.values[i]), "x": corners[i][0], "y": corners[i][1]} for i in top],
    }
