"""What a report says of a regression: figures in words and numbers, predicted against labelled numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import Floats
from mil.metrics.regression import numbers_of
from mil.pages.chart import Chart
from mil.pages.parts import Cards, Figures, Paragraph, Picture, Section
from mil.pages.words import interval as in_short
from mil.tasks.reports.figures import cards, cautions, every_figure, judged

FIGURES = {  # name in metrics.json: title, and what it means
    "mae": ("MAE", "mean absolute error, in the target's own unit; 0 is perfect"),
    "mae_constant": ("MAE of a constant", "of the best single number for all, the median of these very labels"),
    "rmse": ("RMSE", "root of the mean squared error; large errors count more"),
    "r2": ("R²", "part of the labels' variance that is explained; 0 is no better than their mean"),
    "pearson": ("Pearson's r", "how close prediction and label lie to a line; 0 is none, 1 is perfect"),
    "spearman": ("Spearman's ρ", "the same of their ranks: is the order right?"),
    "coverage": ("coverage of ranges", "part of the labels that lie in their 90 % range"),
    "width": ("width of ranges", "mean, in the target's own unit"),
}
_HEADLINE = ("mae", "r2", "spearman", "coverage")
_MOST_DOTS = 1500


def regression_sections(column: str, metrics: Mapping[str, Any], predictions: pd.DataFrame) -> list[Section]:
    """The result in short first, then what is behind it. metrics, predictions: of metrics.json and predictions.csv."""
    slide = judged(metrics)
    said = [Paragraph(line) for line in [*_in_words(column, slide), *cautions(metrics)]]
    return [
        Section("Result", (Cards(tuple(cards(slide, _HEADLINE, FIGURES))), *said, every_figure(metrics, FIGURES))),
        Section("Predicted and labelled", (Figures((_scatter(column, predictions, slide), _errors(predictions))),)),
    ]


def _in_words(column: str, slide: Mapping[str, Any]) -> list[str]:
    lines = [
        f"A prediction of {column} is off by {in_short(slide['mae'])} on average; one number for all would be off by "
        f"{in_short(slide['mae_constant'])}. Every slide was judged by models that saw neither it nor any other slide "
        "of its patient."
    ]
    if (low := slide["r2"]["low"]) is not None and low <= 0:
        lines.append("The interval of R² holds 0: this run does not show that the model is better than a constant.")
    if slide["coverage"]["value"] is None:
        lines.append("There are no ranges: too few slides were left to measure errors on.")
    return lines


def _scatter(column: str, predictions: pd.DataFrame, slide: Mapping[str, Any]) -> Picture:
    truth, said = numbers_of(predictions)
    ends = _ends(np.concatenate([truth, said]))
    chart = Chart(ends, ends, labels=(f"{column}, labelled", "predicted"))
    half = (slide["width"]["value"] or 0.0) / 2
    if half:
        line = np.linspace(*ends, 101)
        chart.band(line, line - half, line + half, "c0")
    chart.guide(ends, ends)
    names, shown = predictions.iloc[:, 0].to_numpy(str), _spread(truth)
    for i in shown:
        chart.dot(truth[i], said[i], "c0", 2.5, f"{names[i]}: labelled {truth[i]:.4g}, predicted {said[i]:.4g}")
    some = f" {len(shown):,} of {len(truth):,} slides are drawn." if len(shown) < len(truth) else ""
    band = " The band has the mean width of the ranges." if half else ""
    caption = f"One dot a slide, out of fold. On the dotted line a prediction is right.{band}{some}"
    return Picture(chart, "Predicted against labelled numbers", "Predicted and labelled", caption, "scatter")


def _errors(predictions: pd.DataFrame) -> Picture:
    truth, said = numbers_of(predictions)
    errors = said - truth
    chart = Chart(_ends(said), _ends(np.append(errors, 0.0)), labels=("predicted", "predicted less labelled"))
    chart.guide(_ends(said), (0, 0))
    for i in _spread(said):
        chart.dot(said[i], errors[i], "c1", 2.5)
    caption = "Errors by what was predicted. A slope or a fan says where not to rely on the numbers."
    return Picture(chart, "Errors by predicted number", "Errors", caption, "errors")


def _spread(values: Floats) -> list[int]:
    """Positions of all, or of an even choice by size of so many that a page bears them."""
    order = np.argsort(values, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_DOTS)).astype(int))]
    return [int(i) for i in chosen]


def _ends(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin
