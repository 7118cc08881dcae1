"""What a report says of survival: figures in words and numbers, curves of risk groups, figures over time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import PERCENTILES, Bootstrap, Floats, draw_weights
from mil.metrics.curves import band
from mil.metrics.survival import (
    Followed,
    Predicted,
    auc_at,
    brier_at,
    followed_of,
    kaplan_meier_at,
    log_rank,
    predicted_of,
)
from mil.pages.chart import Chart
from mil.pages.parts import Cards, Cell, Figures, Heading, Paragraph, Part, Picture, Section, Table
from mil.pages.words import p_value
from mil.tasks.reports.figures import cards, cautions, every_figure, judged

FIGURES = {  # name in metrics.json: title, and what it means
    "c_index": (
        "C-index",
        "chance that the one with the earlier event has the higher risk (Harrell); 0.5 is guessing",
    ),
    "c_uno": ("C-index, Uno", "the same with weights against censoring"),
    "auc": (
        "AUC over time",
        "chance that who had the event by a time has a higher risk than who did not, mean over times",
    ),
    "ipa": (
        "IPA",
        "part of the squared error of survival that is explained; 0 is Kaplan and Meier's one curve for all",
    ),
    "ibs": ("integrated Brier score", "mean squared error of predicted survival over the time; 0 is perfect"),
    "ibs_km": ("that of Kaplan–Meier", "of the one curve of these very slides for all"),
    "hazard_ratio": (
        "hazard ratio of groups",
        "of high against low risk; 1 is no difference, 1,000 stands for no bound",
    ),
}
_HEADLINE = ("c_index", "auc", "ipa", "hazard_ratio")
_GROUPS = (("high risk", "c1"), ("low risk", "c0"))
_LATE = (
    "Patients came under observation at different times: none is at risk before. Two slides are compared where both "
    "were at risk at the event. Figures with weights against censoring are not defined then and are left out."
)
_STEPS = 200
_FIFTHS = 5


def survival_sections(
    column: str, times: Sequence[float], metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
) -> list[Section]:
    """The result in short first, then what is behind it. metrics, predictions: of metrics.json and predictions.csv."""
    slide = judged(metrics)
    weights = draw_weights(predictions["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
    followed, said = followed_of(predictions), predicted_of(predictions, times)
    words = [Paragraph(line) for line in [*_in_words(slide), *cautions(metrics)]]
    over_time = [_auc(column, followed, said, weights), _brier(column, followed, said, weights)]
    if followed.entry is not None:
        over_time = []
        words.append(Paragraph(_LATE))
    return [
        Section("Result", (Cards(tuple(cards(slide, _HEADLINE, FIGURES))), *words, every_figure(metrics, FIGURES))),
        Section("Risk groups", _risk_groups(column, times, predictions, bootstrap)),
        Section("Over time", (Figures((*over_time, _calibration(column, followed, said, weights))),)),
    ]


def _in_words(slide: Mapping[str, Any]) -> list[str]:
    found = slide["c_index"]
    if found["value"] is None:
        return ["No event was seen before another slide's end, so no order can be judged."]
    lines = [
        "Take two slides at random of which one is known to have had its event first: the model gives it the higher "
        f"risk in {100 * found['value']:.0f} of 100 such pairs. Every slide was judged by models that saw neither it "
        "nor any other slide of its patient."
    ]
    if found["low"] <= 0.5 <= found["high"]:
        lines.append(
            f"With 95 % confidence it is between {100 * found['low']:.0f} and {100 * found['high']:.0f}. That holds "
            "50, which is guessing: this run does not show that the model works."
        )
    return lines


def _risk_groups(
    column: str, times: Sequence[float], predictions: pd.DataFrame, bootstrap: Bootstrap
) -> tuple[Part, ...]:
    """One row a patient: the mean of its risks over slides and repeats."""
    patients = predictions.groupby("patient_id").agg(label=("label", "first"), risk=("risk", "mean")).reset_index()
    followed, high = followed_of(patients), patients["risk"].to_numpy() > 0
    groups = {name: high if name == "high risk" else ~high for name, _ in _GROUPS}
    cut = "The cut is the median risk of slides that calibration saw, none of them a test slide."
    if not high.any() or high.all():
        return (Paragraph(f"All patients are of one group. {cut}", soft=True),)
    ends = (0.0, float(followed.time.max()))
    chart = Chart(ends, (0.0, 1.0), labels=(column, "without event"))
    grid = np.linspace(*ends, _STEPS)
    for name, colour in _GROUPS:
        own = groups[name]
        weights = draw_weights(patients["patient_id"][own].tolist(), bootstrap.draws, bootstrap.seed)
        curves = kaplan_meier_at(followed.of(own), grid, weights)
        if drawn := band(curves):
            chart.band(grid, *drawn, colour)
        chart.line(*_stairs(grid, curves[0]), colour, name)
    p = p_value(log_rank(followed, high))
    caption = f". Kaplan and Meier's curves of patients with 95 % bands; log-rank {p}. {cut}"
    key = tuple((colour, name) for name, colour in _GROUPS)
    said = "Share without event over time, for patients with high and with low risk"
    picture = Picture(chart, said, "Kaplan–Meier", caption, "kaplan-meier", key)
    shown = (0.0, *times[1::2])
    rows: list[tuple[Cell, ...]] = [
        (name, *(f"{_under_observation(followed.of(groups[name]), time)}" for time in shown)) for name, _ in _GROUPS
    ]
    head = ("", *(f"{time:g}" for time in shown))
    return Figures((picture,)), Heading(f"Patients still followed, by {column}"), Table(head, tuple(rows))


def _under_observation(followed: Followed, time: float) -> int:
    entered = True if followed.entry is None else followed.entry <= time
    return int(((followed.time >= time) & entered).sum())


def _stairs(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """A line that keeps its height until it falls."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _auc(column: str, followed: Followed, said: Predicted, weights: Floats) -> Picture:
    ends = (float(said.times[0]), float(said.times[-1]) if len(said.times) > 1 else float(said.times[0]) + 1)
    chart = Chart(ends, (0.0, 1.0), labels=(column, "AUC"))
    chart.guide(ends, (0.5, 0.5))
    _line(chart, said.times, auc_at(followed, said, weights), "c0", "AUC")
    caption = "Of those with an event by a time against those still without; dotted: guessing."
    return Picture(chart, "Time-dependent AUC with its 95 % band", "AUC over time", caption, "auc-over-time")


def _brier(column: str, followed: Followed, said: Predicted, weights: Floats) -> Picture:
    ends = (float(said.times[0]), float(said.times[-1]) if len(said.times) > 1 else float(said.times[0]) + 1)
    own = brier_at(followed, said.times, said.survival, weights)
    alike = brier_at(followed, said.times, kaplan_meier_at(followed, said.times, weights), weights)
    highest = max(0.25, *(float(np.max([of[0], *(band(of) or ())])) for of in (own, alike)))
    chart = Chart(ends, (0.0, 1.1 * highest), labels=(column, "Brier score"))
    _line(chart, said.times, own, "c0", "the model")
    _line(chart, said.times, alike, "c1", "Kaplan–Meier")
    caption = ". Squared error of predicted survival: lower is better."
    key = (("c0", "the model"), ("c1", "one curve for all"))
    return Picture(chart, "Brier score over time with its 95 % band", "Brier score", caption, "brier", key)


def _line(chart: Chart, times: Floats, values: Floats, colour: str, named: str) -> None:
    if drawn := band(values):
        chart.band(times, *drawn, colour)
    chart.line(times, values[0], colour, named)


def _calibration(column: str, followed: Followed, said: Predicted, weights: Floats) -> Picture:
    """Fifths by predicted survival at the middle time against Kaplan and Meier's estimate in each."""
    at = len(said.times) // 2
    predicted, time = said.survival[:, at], said.times[at : at + 1]
    chart = Chart((0.0, 1.0), (0.0, 1.0), labels=("survival as predicted", "survival as seen"))
    chart.guide((0, 1), (0, 1))
    fifths = np.array_split(np.argsort(predicted, kind="stable"), min(_FIFTHS, len(predicted)))
    for own in fifths:
        seen = kaplan_meier_at(followed.of(own), time, weights[:, own])[:, 0]
        low, high = np.percentile(seen[1:][weights[1:, own].any(axis=1)], PERCENTILES)
        mean = float(predicted[own].mean())
        chart.line([mean, mean], [low, high], "c0 thin")
        chart.dot(
            mean,
            seen[0],
            "c0",
            5,
            f"predicted {mean:.2f}, seen {seen[0]:.2f} ({low:.2f}–{high:.2f}), n = {len(own)}",
        )
    caption = (
        f"Up to {column} {time[0]:g}, fifths of the slides by what was predicted; on the dotted line predictions are "
        "right. Vertical lines are 95 % intervals."
    )
    return Picture(chart, "Predicted against seen survival", "Calibration", caption, "calibration")
