"""Ordinal: each slide has one of K grades, which have an order.

A head has K - 1 outputs, the log-odds to be above each grade but the highest (cumulative logits; McCullagh, JRSS B
1980), and so has an answer, in probabilities that never rise with the grade. Each output is learnt by its own
cross-entropy, in which those above a grade weigh as much as the others. Calibration divides the log-odds by a
temperature and adds a bias to each, fitted to slides that no weight was fitted to with the priors of
mil.tasks.calibration. Predicted is the median grade: the lowest that a slide is not above with a probability of one
half.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit
from torch import Tensor
from torch.nn import functional

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights
from mil.metrics.difference import paired_difference
from mil.metrics.ordinal import evaluate_grades, quadratic_kappa
from mil.metrics.regression import rank_correlation
from mil.pages.parts import Section
from mil.tasks.calibration import BIAS_SD, LARGEST_LOG_T, LARGEST_SHIFT, LOG_T_SD
from mil.tasks.linear_probe import chosen_probe
from mil.tasks.losses import Criterion
from mil.tasks.reports.figures import title
from mil.tasks.reports.ordinal import FIGURES, ordinal_sections
from mil.tasks.task import Calibration, Judged, Said, Strata, Target, Targets, Task
from tiling.manifest import SlideRow

_LEAST = 1e-7  # probability that a loss is taken of


@dataclass(frozen=True)
class Ordinal(Task):
    """Targets are (S,) int64, positions in `grades`."""

    grades: tuple[str, ...]  # K, from low to high

    kind = "ordinal"
    losses = ("cumulative",)
    watched = "spearman"
    headline = "kappa"
    baseline = "a logistic regression on mean features above each grade"
    judged_title = "probability of its label"

    @classmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        column, found = target.column, sorted({row.labels[target.column] for row in rows})
        grades = tuple(name.strip() for name in target.order.split(",") if name.strip())
        if target.positive:
            raise ValueError(f"--positive is for two classes; {column!r} has grades")
        if len(grades) < 2 or len(set(grades)) < len(grades):
            raise ValueError(
                f"--order names the grades of {column!r} from low to high, each once, parted by commas; they are "
                f"{', '.join(found)}"
            )
        faults = [
            f"row {row.number}: {column} is {row.labels[column]!r}, expected one of --order {', '.join(grades)}"
            for row in sorted(rows, key=lambda row: row.number)
            if row.labels[column] not in grades
        ]
        faults += [
            f"no slide with features has {column} = {name!r}, of --order" for name in grades if name not in found
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return cls(grades), np.array([grades.index(row.labels[column]) for row in rows])

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        return cls(tuple(described["grades"]))

    def provenance(self) -> dict[str, Any]:
        return {"grades": list(self.grades)}

    state = provenance

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"above {name}" for name in self.grades[:-1])

    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        return (Strata(targets, self.grades),)

    def loss_terms(self, targets: Targets) -> Tensor:
        """(K - 1, 2) flattened: weights of those at or below each grade, and of those above it."""
        above = self._above(targets).mean(axis=0)
        return torch.from_numpy(0.5 / np.stack([1 - above, above], axis=1)).float().flatten()

    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        """Cross-entropies of all outputs, summed."""
        if loss not in self.losses:
            raise KeyError(loss)

        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            above = (targets[:, None] > torch.arange(logits.shape[1], device=targets.device)).to(logits)
            weights = torch.where(above > 0, terms[1::2], terms[::2])
            return (weights * functional.binary_cross_entropy_with_logits(logits, above, reduction="none")).sum(1)

        return losses

    def judged_by(self, terms: Tensor) -> Criterion:
        return self.criterion("cumulative", terms)

    def score(self, answers: Floats, targets: Targets) -> float:
        ones = np.ones((1, len(targets)))
        return float(rank_correlation(answers.sum(axis=1), targets.astype(np.float64), ones)[0])

    def answers(self, logits: Tensor) -> Floats:
        answers: Floats = logits.sigmoid().cpu().numpy()
        return answers

    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """temperature and bias (K - 1,)."""
        expected = logit(self._above(trained_on).mean(axis=0))
        if not len(targets):
            return {"temperature": 1.0, "bias": expected.tolist()}
        log_odds, sign = _log_odds(answers), np.where(self._above(targets), 1.0, -1.0)

        def loss(parameters: Floats) -> float:
            log_t, moved = parameters[0], parameters[1:]
            likelihood = log_expit(sign * (log_odds / np.exp(log_t) + expected + moved)).sum()
            return float(0.5 * (log_t / LOG_T_SD) ** 2 + 0.5 * np.square(moved / BIAS_SD).sum() - likelihood)

        bounds = [(-LARGEST_LOG_T, LARGEST_LOG_T), *[(-LARGEST_SHIFT, LARGEST_SHIFT)] * len(expected)]
        found = minimize(loss, np.zeros(1 + len(expected)), bounds=bounds, method="L-BFGS-B").x
        return {"temperature": float(np.exp(found[0])), "bias": (expected + found[1:]).tolist()}

    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        log_odds = _log_odds(answers) / calibration["temperature"] + np.array(calibration["bias"])
        return np.asarray(np.minimum.accumulate(expit(log_odds), axis=-1))

    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        return {}

    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        said = self.grades[int((answer >= 0.5).sum())]
        return {"prediction": said, **dict(zip(self.value_columns, answer, strict=True))}

    @property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(f"above_{name}" for name in self.grades[:-1])

    def label(self, target: Any) -> str:
        return self.grades[int(target)]

    def shown_output(self, answer: Floats) -> int:
        """The one that is least sure: where the predicted grade is decided."""
        return int(np.abs(answer - 0.5).argmin())

    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        weights = draw_weights(table["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
        labels, predicted = self._positions(table["label"]), self._positions(table["prediction"])
        return evaluate_grades(labels, predicted, self._said(table), self.grades, weights)

    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        return {"slides_of_grade": {name: int((table["label"] == name).sum()) for name in self.grades}}

    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        def kappa(of: pd.DataFrame, weights: Floats) -> Floats:
            median = (self._said(of) >= 0.5).sum(axis=1)
            return quadratic_kappa(self._positions(of["label"]), median, weights)

        found, own = paired_difference(table, other, kappa, bootstrap)
        return {**asdict(found), "kappa": own}

    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """The probe of mil.tasks.linear_probe above each grade, calibrated like a head."""
        above, held_above = (self._above(of).astype(np.int64) for of in (targets, held_out[1]))
        probes = [chosen_probe(vectors, above[:, k], (held_out[0], held_above[:, k]), 2) for k in range(above.shape[1])]

        def answers(of: Floats) -> Floats:
            return np.stack([probe(of)[:, 1] for probe in probes], axis=1)

        seen = answers(held_out[0]) if len(held_out[1]) else np.empty((0, len(probes)))
        calibration = self.calibrate(seen, held_out[1], targets)
        return lambda others: self.calibrated(answers(others), calibration)

    def judge(self, table: pd.DataFrame) -> Judged:
        """shown: the probability of the slide's own grade."""
        steps = np.pad(self._said(table), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        own = -np.diff(steps, axis=1)[np.arange(len(table)), self._positions(table["label"])]
        right = (table["label"] == table["prediction"]).to_numpy(bool)
        return Judged(right, own, -np.log(np.maximum(own, _LEAST)))

    def scored(self, at: int) -> str:
        return f"log-odds to be {self.output_names[at]}"

    def say(self, answer: Floats, at: int) -> Said:
        name = self.output_names[at]
        return Said(f"probability to be {name}", f"P({name})", f"{answer[at]:.2f}")

    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        return ordinal_sections(self.grades, metrics, predictions)

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        return [(f"{counts['slides_of_grade'][name]:,}", name) for name in self.grades]

    def figure_title(self, name: str) -> str:
        return title(name, FIGURES)

    def describe(self, column: str, targets: Targets) -> str:
        counts = np.bincount(targets, minlength=len(self.grades))
        return f"target {column}: " + " < ".join(f"{n} {c}" for n, c in zip(self.grades, counts, strict=True))

    @property
    def figure_titles(self) -> Mapping[str, str]:
        return {name: title(name, FIGURES) for name in FIGURES}

    def figure_notes(self) -> Sequence[str]:
        return ["kappa has quadratic weights: 0 is chance, 1 is perfect"]

    def differs_from(self, other: Task) -> str:
        same = isinstance(other, Ordinal) and other.grades == self.grades
        return "" if same else f"has other grades than {', '.join(self.grades)}"

    def _above(self, targets: Targets) -> NDArray[np.bool_]:
        """(n, K - 1)"""
        return np.asarray(targets[:, None] > np.arange(len(self.grades) - 1))

    def _positions(self, names: "pd.Series[str]") -> NDArray[np.int64]:
        return np.array([self.grades.index(name) for name in names], np.int64)

    def _said(self, table: pd.DataFrame) -> Floats:
        return table[list(self.value_columns)].to_numpy(np.float64)


def _log_odds(answers: Floats) -> Floats:
    tiny = np.finfo(np.float64).eps
    return np.asarray(logit(np.clip(answers, tiny, 1 - tiny)))


TASK = Ordinal
