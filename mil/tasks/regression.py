"""Regression: each slide has a number.

A head's one output is the number in standard deviations from the mean of its training part, and so is an answer before
calibration; calibrated it is in the target's own unit. With it goes a range that holds 90 % of the slides, of equal
width for all: split conformal prediction (Lei et al., "Distribution-free predictive inference for regression", JASA
2018) on slides that no weight was fitted to. That holds for new slides like these, on average over cohorts; slides of
one patient are more alike than it assumes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights
from mil.metrics.difference import paired_difference
from mil.metrics.regression import (
    correlation,
    evaluate_numbers,
    mean_error,
    mean_error_interval,
    numbers_of,
    range_of,
)
from mil.pages.parts import Section
from mil.tasks.losses import Criterion
from mil.tasks.numbers import number_text, read_numbers
from mil.tasks.reports.figures import title
from mil.tasks.reports.regression import FIGURES, regression_sections
from mil.tasks.task import Calibration, Judged, Said, Strata, Target, Targets, Task
from tiling.manifest import SlideRow

SHARE = 0.9  # of slides whose number lies in its range
_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # of the baseline, on standardised features
_PENALTY = 1e3  # where there is nothing to choose it on
_LOSSES: Mapping[str, Callable[..., Tensor]] = {"huber": functional.huber_loss, "squared": functional.mse_loss}
_SLIDES_A_STRATUM, _MOST_STRATA = 20, 4


@dataclass(frozen=True)
class Regression(Task):
    """Targets are (S,) float64, an answer is one number."""

    column: str  # of the slide table, the name of what is predicted

    kind = "regression"
    losses = tuple(_LOSSES)
    watched = "pearson"
    headline = "mae"
    baseline = "ridge regression on mean features"
    judged_title = "predicted less labelled"
    wrong_title = "outside its range"
    value_columns = ("value",)

    @classmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        column = target.column
        if target.positive:
            raise ValueError(f"--positive is for two classes; the target {column!r} is a number")
        numbers, faults = read_numbers(rows, column)
        if not faults and len(set(numbers)) == 1:
            faults = [f"all slides with features have {column} = {rows[0].labels[column]} in {table}; nothing to learn"]
        if faults:
            raise ValueError("\n".join(faults))
        return cls(column), numbers

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        return cls(described["column"])

    def provenance(self) -> dict[str, Any]:
        return {"column": self.column}

    def state(self) -> dict[str, Any]:
        return {"column": self.column}

    @property
    def output_names(self) -> tuple[str, ...]:
        return (self.column,)

    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        """Quantile bins, two to four, about equally large unless numbers repeat."""
        bins = int(np.clip(len(targets) // _SLIDES_A_STRATUM, 2, _MOST_STRATA))
        ends = np.unique(np.quantile(targets, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
        ends = ends[ends < targets.max()]
        if not len(ends):  # more than half of the slides have the largest number
            ends = targets[targets < targets.max()].max(keepdims=True)
        of_slide = np.searchsorted(ends, targets, side="left")
        names = [f"up to {number_text(ends[0])}", *(f"above {number_text(end)}" for end in ends)]
        return (Strata(of_slide, tuple(names)),)

    def loss_terms(self, targets: Targets) -> Tensor:
        """(2,) mean and standard deviation."""
        return torch.tensor(_moments(targets)).float()

    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        """Of the number in standard deviations; beyond one the Huber loss (1964) grows like the error itself."""
        of_errors = _LOSSES[loss]

        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            wanted = (targets - terms[0]) / terms[1]
            return of_errors(logits[:, 0], wanted.to(logits), reduction="none")

        return losses

    def judged_by(self, terms: Tensor) -> Criterion:
        return self.criterion("huber", terms)

    def score(self, answers: Floats, targets: Targets) -> float:
        return float(correlation(answers[:, 0], targets, np.ones((1, len(targets))))[0])

    def answers(self, logits: Tensor) -> Floats:
        answers: Floats = logits.cpu().numpy()
        return answers

    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """Mean and deviation of the training part, and half the width of the range; None for too few slides."""
        mean, deviation = _moments(trained_on)
        errors = np.abs(answers[:, 0] * deviation + mean - targets)
        return {"mean": mean, "deviation": deviation, "half_width": conformal_quantile(errors, SHARE)}

    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        calibrated: Floats = answers * calibration["deviation"] + calibration["mean"]
        return calibrated

    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        """A mean of answers is no further off than the answers are on average."""
        widths = [c["half_width"] for c in calibrations]
        return {"half_width": None if None in widths else float(np.mean(widths))}

    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        value, half = float(answer[0]), calibration["half_width"]
        low, high = (None, None) if half is None else (value - half, value + half)
        return {"prediction": f"{value:.4g}", "value": value, "low": low, "high": high}

    def calibration_said(self, calibration: Calibration) -> str:
        half = calibration["half_width"]
        return "" if half is None else f"  range ± {half:.3g}"

    @property
    def further_columns(self) -> tuple[str, ...]:
        return "low", "high"

    def label(self, target: Any) -> str:
        return number_text(float(target))

    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        return {**evaluate_numbers(table, bootstrap)}

    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        labels = table["label"].astype(float)
        return {"lowest": float(labels.min()), "median": float(labels.median()), "highest": float(labels.max())}

    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        found, _ = paired_difference(table, other, mean_error, bootstrap)
        weights = draw_weights(other["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
        return {**asdict(found), "mae": mean_error_interval(other, weights)}

    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """Ridge regression on standardised features, its penalty the one with the lowest held-out squared error."""
        penalties = _PENALTIES if len(held_out[1]) else (_PENALTY,)
        fitted = [make_pipeline(StandardScaler(), Ridge(penalty)).fit(vectors, targets) for penalty in penalties]
        if len(fitted) > 1:
            fitted.sort(key=lambda model: float(np.square(model.predict(held_out[0]) - held_out[1]).mean()))
        return lambda others: np.asarray(fitted[0].predict(others))[:, None]

    def judge(self, table: pd.DataFrame) -> Judged:
        """right: the number lies in its range, or there is none."""
        truth, said = numbers_of(table)
        low, high = range_of(table)
        return Judged(~((truth < low) | (truth > high)), said - truth, np.abs(said - truth))

    def scored(self, at: int) -> str:
        return f"{self.column} in standard deviations from its mean"

    def say(self, answer: Floats, at: int) -> Said:
        return Said(self.column, self.column, f"{answer[0]:.3g}")

    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        return regression_sections(self.column, metrics, predictions)

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        return [(f"{counts['lowest']:.3g} to {counts['highest']:.3g}", self.column)]

    def figure_title(self, name: str) -> str:
        return title(name, FIGURES)

    def describe(self, column: str, targets: Targets) -> str:
        low, middle, high = np.quantile(targets, (0, 0.5, 1))
        return f"target {column}: {low:.4g} to {high:.4g}, median {middle:.4g}"

    @property
    def figure_titles(self) -> Mapping[str, str]:
        return {name: title(name, FIGURES) for name in FIGURES}

    def figure_notes(self) -> Sequence[str]:
        return [f"errors are in the unit of {self.column}: lower is better; a range should hold {SHARE:.0%} of slides"]

    def differs_from(self, other: Task) -> str:
        return "" if isinstance(other, Regression) else "predicts no number"


def conformal_quantile(errors: Floats, share: float) -> float | None:
    """The width within which a new error lies with probability `share` at least, given errors (n,) of its kind.

    The ⌈(n + 1) share⌉-th smallest; None where n is too small for any.
    """
    rank = math.ceil((len(errors) + 1) * share)
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else None


def _moments(targets: Targets) -> tuple[float, float]:
    """Mean and standard deviation; 1 where all are the same."""
    return float(targets.mean()), float(targets.std()) or 1.0


TASK = Regression
