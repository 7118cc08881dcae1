"""What a report says of grades: figures in words and numbers, confusion, figures above each grade."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from mil.metrics.bootstrap import Floats
from mil.pages.parts import Cards, Cell, Heading, Matrix, Paragraph, Section, Table, number
from mil.tasks.reports.figures import cards, cautions, every_figure, judged

FIGURES = {  # name in metrics.json: title, and what it means
    "kappa": ("quadratic kappa", "agreement beyond chance; far off counts more than near; 0 is chance, 1 is perfect"),
    "mae": ("grades off", "on average; 0 is perfect"),
    "accuracy": ("accuracy", "part of the slides with the very grade; a frequent grade makes it high"),
    "within_one": ("within one grade", "part of the slides"),
    "spearman": ("Spearman's ρ", "of grade and prediction: is the order right? 0 is none, 1 is perfect"),
    "auroc": (
        "AUROC above a grade",
        "chance that a slide above a grade is put above one that is not, mean over grades",
    ),
    "rps": ("ranked probability score", "squared error of the probabilities to be above each grade; 0 is perfect"),
}
_HEADLINE = ("kappa", "mae", "within_one", "auroc")


def ordinal_sections(grades: Sequence[str], metrics: Mapping[str, Any], predictions: pd.DataFrame) -> list[Section]:
    """The result in short first, then what is behind it. metrics, predictions: of metrics.json and predictions.csv."""
    slide = judged(metrics)
    said = [Paragraph(line) for line in [*_in_words(slide), *cautions(metrics)]]
    counts = confusion_matrix(predictions["label"], predictions["prediction"], labels=grades)  # (K, K)
    share: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix = Matrix(tuple(grades), tuple(map(tuple, counts.tolist())), tuple(map(tuple, share.tolist())))
    rows: list[tuple[Cell, ...]] = [(name, number(figure)) for name, figure in slide["auroc_above"].items()]
    note = "Slides, and their part of the row. Predicted is the median grade."
    return [
        Section("Result", (Cards(tuple(cards(slide, _HEADLINE, FIGURES))), *said, every_figure(metrics, FIGURES))),
        Section(
            "Grades",
            (matrix, Paragraph(note, soft=True), Heading("AUROC above each grade"), Table(("", "AUROC"), tuple(rows))),
        ),
    ]


def _in_words(slide: Mapping[str, Any]) -> list[str]:
    kappa = slide["kappa"]
    if kappa["value"] is None:
        return ["All slides are of one grade, so nothing can be said about telling grades apart."]
    lines = [
        f"A predicted grade is off by {slide['mae']['value']:.2f} on average. Every slide was judged by models that "
        "saw neither it nor any other slide of its patient."
    ]
    if kappa["low"] <= 0 <= kappa["high"]:
        lines.append("The interval of kappa holds 0, which is chance: this run does not show that the model works.")
    return lines
