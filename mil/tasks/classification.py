"""Classification: each slide is of one of C classes, of which one is positive where there are two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp
from torch import Tensor

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights, interval
from mil.metrics.classification import evaluate, macro_auroc
from mil.metrics.difference import auroc_difference
from mil.metrics.found import found
from mil.pages.parts import Section
from mil.tasks.calibration import calibrated, class_shares, fit_calibration
from mil.tasks.linear_probe import chosen_probe
from mil.tasks.losses import LOSSES, Criterion, criterion
from mil.tasks.reports.classification import FIGURES, classification_sections
from mil.tasks.reports.figures import title
from mil.tasks.task import Calibration, Judged, Said, Strata, Target, Targets, Task
from tiling.manifest import SlideRow

_SMALLEST_PROBABILITY = 1e-7  # below, a loss would be infinite
_SHOWN = (  # on a terminal, in this order
    *("auroc", "auroc_delong", "auroc_of_folds", "auprc", "balanced_accuracy", "sensitivity", "specificity", "f1"),
    *("mcc", "accuracy", "brier", "ece"),
)


@dataclass(frozen=True)
class Classification(Task):
    """Targets are (S,) int64, positions in `classes`; an answer is a probability of each class."""

    classes: tuple[str, ...]  # C, sorted
    positive: int | None  # position in classes; None unless C = 2

    kind = "classification"
    losses = LOSSES
    watched = "auroc"
    headline = "auroc"
    baseline = "logistic regression on mean features"
    judged_title = "probability of its label"
    patch_score = "patch log-odds"
    smooths_labels = True

    @classmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        classes = tuple(sorted({row.labels[target.column] for row in rows}))
        if fault := _class_fault(classes, target, table):
            raise ValueError(fault)
        positive = None
        if len(classes) == 2:
            positive = classes.index(target.positive) if target.positive else 1
        return cls(classes, positive), np.array([classes.index(row.labels[target.column]) for row in rows])

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        """A checkpoint counts the positive class, provenance names it, and an attention file has "" for none."""
        classes, positive = tuple(described["classes"]), described["positive"]
        if isinstance(positive, str):
            positive = classes.index(positive) if positive else None
        return cls(classes, positive)

    def provenance(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "positive": self.positive_name or None}

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "positive": self.positive}

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def positive_name(self) -> str:
        return "" if self.positive is None else self.classes[self.positive]

    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        return (Strata(targets, self.classes),)

    def loss_terms(self, targets: Targets) -> Tensor:
        """(C,) such that each class adds the same to the loss, 1 for balanced classes."""
        counts = np.bincount(targets, minlength=len(self.classes))
        return torch.from_numpy(len(targets) / (len(self.classes) * counts)).float()

    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        return criterion(loss, terms, label_smoothing)

    def judged_by(self, terms: Tensor) -> Criterion:
        return criterion("cross-entropy", terms)

    def score(self, answers: Floats, targets: Targets) -> float:
        """Macro AUROC for more than two classes."""
        return float(macro_auroc(answers, targets, np.ones((1, len(targets))), self.positive)[0])

    def answers(self, logits: Tensor) -> Floats:
        probabilities: Floats = logits.softmax(-1).cpu().numpy()
        return probabilities

    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """Temperature and bias, the classes' shares in training, and the threshold of calibrated probabilities.

        The threshold is None unless C = 2, else the positive class's share: there both classes are as likely as each
        other where they are equally frequent, which makes the balanced accuracy the best. Chosen on a hundred slides it
        would be worse, by chance (tests/benchmarks/accuracy/accuracy_threshold.py).
        """
        shares = class_shares(trained_on, len(self.classes))
        temperature, bias = fit_calibration(answers, targets, shares)
        return {
            "threshold": None if self.positive is None else float(shares[self.positive]),
            "temperature": temperature,
            "bias": bias.tolist(),
            "shares": shares.tolist(),
        }

    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        bias = np.array(calibration.get("bias", np.zeros(len(self.classes))))
        return calibrated(answers, calibration.get("temperature", 1.0), bias)

    def for_prevalence(self, calibration: Calibration, prevalence: float) -> Calibration:
        """Odds are multiplied by how much larger they are there, and so are those of the threshold."""
        if self.positive is None:
            raise ValueError(f"the target has {len(self.classes)} classes, of which none is positive")
        if "shares" not in calibration:
            raise ValueError("an earlier release trained the run and did not keep the classes' shares; train again")
        others = np.full(2, 1 - prevalence)
        others[self.positive] = prevalence
        moved = np.log(others / calibration["shares"])  # (2,)
        threshold = expit(logit(calibration["threshold"]) + moved[self.positive] - moved[1 - self.positive])
        bias = (np.array(calibration["bias"]) + moved).tolist()
        return {**calibration, "threshold": float(threshold), "bias": bias, "shares": others.tolist()}

    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        thresholds = [c["threshold"] for c in calibrations if c["threshold"] is not None]
        return {"threshold": float(np.mean(thresholds)) if thresholds else None}

    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        probabilities = zip(self.value_columns, answer, strict=True)
        return {"prediction": self.classes[self._decide(answer, calibration["threshold"])], **dict(probabilities)}

    def calibration_said(self, calibration: Calibration) -> str:
        threshold = calibration["threshold"]
        return "" if threshold is None else f"  threshold {threshold:.2f}"

    def _decide(self, answer: Floats, threshold: float | None) -> int:
        """By threshold for two classes, else the most probable."""
        if self.positive is None or threshold is None:
            return int(answer.argmax())
        return self.positive if answer[self.positive] >= threshold else 1 - self.positive

    @property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(f"prob_{name}" for name in self.classes)

    def label(self, target: Any) -> str:
        return self.classes[int(target)]

    def spread_output(self, answer: Floats) -> int:
        return self.shown_output(answer) if self.positive is None else self.positive

    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        return evaluate(table, self.classes, self.positive, bootstrap.draws, bootstrap.seed)

    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        return {"slides_of_class": {name: int((table["label"] == name).sum()) for name in self.classes}}

    def found(self, table: pd.DataFrame) -> dict[str, Any] | None:
        """See mil.metrics.found; for two classes."""
        return None if self.positive is None else found(table, self.value_columns[self.positive], self.positive_name)

    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        found = auroc_difference(table, other, self.classes, self.positive, bootstrap.draws, bootstrap.seed)
        weights = draw_weights(other["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
        own = macro_auroc(*self._judgeable(other), weights, self.positive)
        return {**asdict(found), "auroc": interval(own)}

    def _judgeable(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.int64]]:
        """Probabilities (n, C) and labels (n,) of a prediction table."""
        labels = np.array([self.classes.index(name) for name in table["label"]])
        return table[list(self.value_columns)].to_numpy(np.float64), labels

    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """The probe of mil.tasks.linear_probe."""
        return chosen_probe(vectors, targets, held_out, len(self.classes))

    def judge(self, table: pd.DataFrame) -> Judged:
        """shown: the probability of the slide's own label."""
        probabilities, labels = self._judgeable(table)
        own = probabilities[np.arange(len(labels)), labels]
        right = (table["label"] == table["prediction"]).to_numpy(bool)
        return Judged(right, own, -np.log(np.maximum(own, _SMALLEST_PROBABILITY)))

    def shown_logits(self, logits: Floats, calibration: Calibration) -> Floats:
        """Divided by the temperature."""
        return np.asarray(logits / calibration.get("temperature", 1.0))

    def patch_scores(self, logits: Floats, at: int) -> Floats:
        """Log-odds of the class."""
        return np.asarray(logits[:, at] - logsumexp(np.delete(logits, at, axis=1), axis=1))

    def shares(self, parts: Floats, at: int) -> Floats:
        """The class against the mean of the others; for two classes this sums to the log-odds."""
        return np.asarray(parts[:, at] - np.delete(parts, at, axis=1).mean(axis=1))

    def scored(self, at: int) -> str:
        return f"log-odds of {self.classes[at]}"

    def say(self, answer: Floats, at: int) -> Said:
        name = self.classes[at]
        return Said(f"probability of {name}", f"P({name})", f"{answer[at]:.2f}")

    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        return classification_sections(self.classes, self.positive_name or None, metrics, predictions, bootstrap)

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        return [(f"{count:,}", name) for name, count in counts["slides_of_class"].items()]

    def figure_title(self, name: str) -> str:
        return title(name, FIGURES)

    def describe(self, column: str, targets: Targets) -> str:
        counts = np.bincount(targets)
        classes = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts, strict=True))
        return f"target {column}: {classes}" + (f"; positive class: {self.positive_name}" if self.positive_name else "")

    @property
    def figure_titles(self) -> Mapping[str, str]:
        return {name: title(name, FIGURES) for name in _SHOWN}

    def figure_notes(self) -> Sequence[str]:
        pooled = "AUROC is of all folds together, its mean of folds is of each fold's slides alone"
        if self.positive is None:
            return [pooled, "AUROC, sensitivity and specificity are macro averages of one class against the rest"]
        return [pooled, f"sensitivity is of class {self.positive_name}, specificity of the other one"]

    def differs_from(self, other: Task) -> str:
        same = isinstance(other, Classification) and other.classes == self.classes
        return "" if same else f"has other classes than {', '.join(self.classes)}"


def _class_fault(classes: tuple[str, ...], target: Target, table: str) -> str:
    positive, column = target.positive, target.column
    if len(classes) < 2:
        return f"all slides with features have {column} = {classes[0]!r} in {table}; training needs two classes"
    if positive and len(classes) != 2:
        return f"--positive is for two classes; {column!r} has {len(classes)}: {', '.join(classes)}"
    if positive and positive not in classes:
        return f"--positive {positive!r} is not a class of {column!r}; they are {', '.join(classes)}"
    return ""


TASK = Classification
