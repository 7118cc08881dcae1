"""The seam between a kind of target and everything else: all that the program asks of one.

A task belongs to one cohort and knows what the cohort's targets have in common (for a classification its classes). A
head gives C numbers a slide, its logits. `answers` turns them into the numbers that are reported (probabilities),
`calibrate` learns from slides that no weight was fitted to how to correct them, `columns` says them in a table.
S slides, n of them, C outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from mil.metrics.bootstrap import Bootstrap, Floats
from mil.pages import words
from mil.pages.parts import Section
from mil.tasks.losses import Criterion
from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow, target_columns

Targets = NDArray[Any]  # (S,) or (S, …): what a task makes of the slides' columns
Indices = NDArray[np.int64]
Calibration = Mapping[str, Any]  # of one model: JSON values by name, stored in its checkpoint


@dataclass(frozen=True)
class Target:
    """What is asked for: a column of the slide table, and what kind of target. RequestError where they disagree."""

    column: str  # or several, parted by commas
    positive: str = ""  # class of a two-class target; empty: the last in sorted order
    task: str = "classification"
    event: str = ""  # column that says whether the event was seen at the end of the time in `column`
    order: str = ""  # grades from low to high, parted by commas
    entry: str = ""  # column that says when each slide's patient came under observation, where not at 0
    bag: str = "slide"  # what has one such target: slide, or patient
    gaps: bool = False  # slides that lack it are left out, where that is no error

    def __post_init__(self) -> None:
        several, named = self.kind == "several", ", ".join(self.names)
        if several and self.task not in ("classification", "several"):
            raise RequestError(
                f"--task {self.task} learns one target, and --target names {named}; several at once are classes: train "
                "a run for each"
            )
        if several and len(self.names) < 2:
            raise RequestError(f"--task several learns two targets or more, and --target names {named}; leave it out")

    @property
    def names(self) -> tuple[str, ...]:
        """Each target's column."""
        return target_columns(self.column)

    @property
    def kind(self) -> str:
        return "several" if len(self.names) > 1 else self.task

    @property
    def columns(self) -> tuple[str, ...]:
        """All that hold a part of the answer."""
        return tuple(filter(None, (*self.names, self.event, self.entry)))


@dataclass(frozen=True)
class Strata:
    """How splits tell the slides of one target apart."""

    of_slide: Indices  # (S,) position of each slide's stratum, -1 where it has no label
    names: tuple[str, ...]
    target: str = ""  # its column, where there are several

    @property
    def members(self) -> NDArray[np.bool_]:
        """(S, number of strata) whether a slide is of a stratum."""
        return np.asarray(self.of_slide[:, None] == np.arange(len(self.names)))

    def held(self, slides: Indices) -> Indices:
        """Strata of which one of these slides is, rising."""
        held = np.unique(self.of_slide[slides])
        return held[held >= 0]


@dataclass(frozen=True)
class Judged:
    """What a run said of n slides, row for row of its predictions."""

    right: NDArray[np.bool_]  # (n,)
    shown: Floats  # (n,) the number of the answer that belongs to the target
    loss: Floats  # (n,) what was most wrong comes first


@dataclass(frozen=True)
class Said:
    """One number of an answer in words: `probability of tumour`, `P(tumour)`, `0.93`."""

    what: str
    short: str
    number: str


class Task(ABC):
    """One kind of target, for one cohort. Implementations are frozen dataclasses, equal where they ask the same."""

    kind: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]  # of training, by name, the usual one first
    watched: ClassVar[str]  # the figure of the validation part, `val_<watched>` in history.csv
    headline: ClassVar[str]  # the figure of metrics.json by which runs are compared
    baseline: ClassVar[str]  # what `fit_baseline` fits to mean features, in words
    judged_title: ClassVar[str]  # of Judged.shown
    wrong_title: ClassVar[str] = "wrong"  # of slides that are not Judged.right
    patch_score: ClassVar[str] = "patch score"  # title of `patch_scores`
    smooths_labels: ClassVar[bool] = False  # whether a part of a label may be spread over the others

    # What it reads

    @classmethod
    @abstractmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        """The task and the targets of S rows, whose column is filled. ValueError with all faults, a line each."""

    @classmethod
    @abstractmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        """From what `provenance` or `state` gave."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """For provenance.json and attention files, by names of its own: text, numbers, lists of these, None."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """C names: of the logits, of patch scores, of what a heatmap may speak of."""

    @property
    def target_sizes(self) -> tuple[int, ...]:
        """Of several targets at once, how many of the C outputs are of each."""
        return ()

    @property
    def noun(self) -> str:
        """What the target is, for messages."""
        return f"a {self.kind}"

    @property
    def positive_name(self) -> str:
        """The output that the task is about; empty where it is about all."""
        return self.output_names[0] if len(self.output_names) == 1 else ""

    # How it is split

    @abstractmethod
    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        """Of each target. A training part needs all strata of each, any other part two of each."""

    # How it is learned

    @abstractmethod
    def loss_terms(self, targets: Targets) -> Tensor:
        """(P,) float32: what the loss knows of a training part, such as the weights of its classes."""

    @abstractmethod
    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        """The training loss called `loss`: logits (n, C), targets (n,) -> (n,). KeyError for one it does not have."""

    @abstractmethod
    def judged_by(self, terms: Tensor) -> Criterion:
        """The loss by which an epoch is kept."""

    @abstractmethod
    def score(self, answers: Floats, targets: Targets) -> float:
        """The figure `watched` of n answers; NaN where it is not defined."""

    # How it is predicted

    @abstractmethod
    def answers(self, logits: Tensor) -> Floats:
        """Logits (n, C) float64 -> what is reported (n, C), before any calibration."""

    @abstractmethod
    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """From n answers for slides that no weight was fitted to; n may be 0. trained_on: targets of the others."""

    @abstractmethod
    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        """Answers (…, C) as they are reported."""

    def for_prevalence(self, calibration: Calibration, prevalence: float) -> Calibration:
        """The same where a share `prevalence` (0 to 1) of slides is positive. ValueError where that has no meaning."""
        raise ValueError(f"the target is {self.noun}, of which no class is positive")

    @abstractmethod
    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        """One with which the mean of several models' calibrated answers is put into words by `columns`."""

    @abstractmethod
    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        """What the tables say of a calibrated answer (C,): `prediction`, `value_columns` and `further_columns`."""

    @property
    @abstractmethod
    def value_columns(self) -> tuple[str, ...]:
        """C columns of predictions.csv that hold the answer, such as `prob_<class>`."""

    @property
    def further_columns(self) -> tuple[str, ...]:
        """What `columns` says besides `prediction` and `value_columns`: numbers, and texts named `… prediction`."""
        return ()

    @abstractmethod
    def label(self, target: Any) -> str:
        """The text of one slide's target."""

    def label_columns(self, label: str) -> dict[str, str]:
        """What tables say of such a text: `label`, and others whose names end in ` label`."""
        return {"label": label}

    def joint_label(self, labels: Sequence[str]) -> str:
        """That of a patient whose slides have these; empty where they contradict each other."""
        return labels[0] if len(set(labels)) == 1 else ""

    def label_at(self, label: str, at: int) -> str:
        """The output that such a text names, of those among which output `at` is; empty where it names none."""
        return label

    def calibration_said(self, calibration: Calibration) -> str:
        """What a line on a trained fold says of it, two spaces before it."""
        return ""

    def shown_output(self, answer: Floats) -> int:
        """Which of C outputs an answer (C,) speaks for: whose attention is shown where there is one an output."""
        return int(answer.argmax())

    def spread_output(self, answer: Floats) -> int:
        """Which output's deviation over models is the spread of a prediction."""
        return self.shown_output(answer)

    # How it is judged

    @abstractmethod
    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        """All figures of a prediction table (patient_id, label, `columns`): name to interval, or to one a class."""

    @abstractmethod
    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        """What metrics.json says of the slides (one row a slide) besides their number."""

    def found(self, table: pd.DataFrame) -> dict[str, Any] | None:
        """Whether a prediction table shows more than chance, and its p value; None where there is no such test."""
        return None

    def found_said(self, found: Mapping[str, Any]) -> Sequence[str]:
        """What `found` says, in sentences."""
        return [words.found_sentence(found)]

    @abstractmethod
    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        """How the headline figure differs from that of another table on the same slides, paired by patient.

        value, low, high, p, and what else words.difference_sentence says; under the headline's name the other's own
        figure. Raises ValueError unless both tables have the same slides and labels in the same repeats.
        """

    @abstractmethod
    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """A plain model of slide vectors (n, D); held_out: of the validation part, may be empty.

        It gives answers as they are reported, (n, C).
        """

    @abstractmethod
    def judge(self, table: pd.DataFrame) -> Judged:
        """Each row of a prediction table."""

    # What maps show

    def shown_logits(self, logits: Floats, calibration: Calibration) -> Floats:
        """Logits of patches (N, C), or what they add to a slide's, in the unit of calibrated ones."""
        return logits

    def patch_scores(self, logits: Floats, at: int) -> Floats:
        """Logits (N, C) of patches alone -> (N,): how much each speaks for output `at`."""
        return logits[:, at]

    def shares(self, parts: Floats, at: int) -> Floats:
        """Parts (N, C) that patches have in the slide's logits -> (N,): in what is said of output `at`."""
        return parts[:, at]

    def scored(self, at: int) -> str:
        """What both are scores of."""
        return self.output_names[at]

    # What it is called

    def say(self, answer: Floats, at: int) -> Said:
        """Output `at` of an answer (C,)."""
        name = self.output_names[at]
        return Said(name, name, f"{answer[at]:.3g}")

    @abstractmethod
    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        """What a report says of metrics.json and predictions.csv: the result in short first, then what is behind it."""

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        """Numbers and what they count, of `counts`, for the head of the report."""
        return []

    def figure_title(self, name: str) -> str:
        """Of any figure of metrics.json."""
        return self.figure_titles.get(name, name.replace("_", " "))

    @abstractmethod
    def describe(self, column: str, targets: Targets) -> str:
        """One line before training."""

    @property
    @abstractmethod
    def figure_titles(self) -> Mapping[str, str]:
        """The figures that a terminal shows, in order, and their titles."""

    @abstractmethod
    def figure_notes(self) -> Sequence[str]:
        """Lines below that table."""

    @abstractmethod
    def differs_from(self, other: "Task") -> str:
        """Why runs of the two cannot be compared, as `has other classes than …`; empty where they can."""
