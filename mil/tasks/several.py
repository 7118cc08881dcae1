"""Several targets at once: each slide is of a class of each of K columns, or of none of a column that is empty there.

A head has an output for each class of each target, one target's after the other's. Patch embeddings are shared; where a
head pools by attention, each target has one of its own. Each has a softmax, a loss, a calibration and figures of its
own, as a classification by its column alone has. A loss counts where there is a label, and so does everything else: a
slide without a target's label is nothing to that target. Texts name the classes with their targets, `er=positive;
pr=negative`; what tables and figures say of a target begins with its name and a space, as `er prob_positive` and `er
auroc`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.metrics.difference import paired_difference
from mil.metrics.found import corrected
from mil.pages.parts import Section
from mil.tasks.classification import Classification
from mil.tasks.losses import LOSSES, Criterion
from mil.tasks.reports.several import OfTarget, several_sections
from mil.tasks.task import Calibration, Indices, Judged, Said, Strata, Target, Targets, Task
from tiling.manifest import SlideRow

_BETWEEN = "; "
_SHOWN = ("auroc", "balanced_accuracy", "sensitivity", "specificity")  # of each target, on a terminal


@dataclass(frozen=True)
class Several(Task):
    """Targets are (S, K) float32, positions in each target's classes, NaN without a label; answers are probabilities.

    `auroc` of all is the mean over targets.
    """

    names: tuple[str, ...]  # K columns
    tasks: tuple[Classification, ...]  # K

    kind = "several"
    losses = LOSSES
    watched = "auroc"
    headline = "auroc"
    baseline = "a logistic regression on mean features of each target"
    judged_title = "probability of its label that is least likely"
    patch_score = "patch log-odds"
    smooths_labels = True

    # What it reads

    @classmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        names, faults, tasks = target.names, _unlabelled(rows, target.names), []
        targets = np.full((len(rows), len(names)), np.nan, np.float32)
        chosen = {of: name for of, _, name in (part.strip().rpartition("=") for part in target.positive.split(","))}
        faults += [f"--positive {of}={chosen[of]}: not a target" for of in chosen if of and of not in names]
        for k, name in enumerate(names):
            own = [i for i, row in enumerate(rows) if row.labels[name]]
            try:
                if not own:
                    raise ValueError(f"no slide with features has a label in {name!r} of {table}; leave it out")
                asked = Target(name, chosen.get(name, chosen.get("", "")))
                task, targets[own, k] = Classification.read([rows[i] for i in own], asked, table)
                tasks.append(task)
            except ValueError as error:
                faults += str(error).splitlines()
        if faults:
            raise ValueError("\n".join(faults))
        return cls(names, tuple(tasks))._with_clear_outputs(), targets

    def _with_clear_outputs(self) -> Self:
        """ValueError where the text of a label could mean two things."""
        outputs = self.output_names
        unclear = [name for name in outputs if _BETWEEN in name or outputs.count(name) > 1]
        if unclear:
            raise ValueError(f"{unclear[0]!r} can be read in two ways; rename the column or the class, without = and ;")
        return self

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        classes, tasks = iter(described["classes"]), []
        for size, positive in zip(described["sizes"], described["positive"], strict=True):
            own = [next(classes) for _ in range(size)]
            tasks.append(Classification.restored({"classes": own, "positive": positive}))
        return cls(tuple(described["targets"]), tuple(tasks))

    def provenance(self) -> dict[str, Any]:
        """Flat, as attributes of attention files are: classes of all targets, how many each has, "" for no positive."""
        return {
            "targets": list(self.names),
            "sizes": list(self.target_sizes),
            "classes": [name for task in self.tasks for name in task.classes],
            "positive": [task.positive_name for task in self.tasks],
        }

    state = provenance

    @property
    def noun(self) -> str:
        return f"several columns at once ({', '.join(self.names)}), each of which could have a run of its own"

    @property
    def target_sizes(self) -> tuple[int, ...]:
        return tuple(len(task.classes) for task in self.tasks)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"{name}={of_class}" for name, task in self._each for of_class in task.classes)

    @property
    def positive_name(self) -> str:
        """Of the first target; what is shown where nobody asks for another."""
        positive = self.tasks[0].positive_name
        return positive and f"{self.names[0]}={positive}"

    @property
    def _each(self) -> Iterator[tuple[str, Classification]]:
        return zip(self.names, self.tasks, strict=True)

    @cached_property
    def _blocks(self) -> tuple[slice, ...]:
        """The outputs of each target."""
        ends = np.cumsum(self.target_sizes).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def _at(self, at: int) -> tuple[int, int]:
        """The target that an output is of, and its place among that target's."""
        k = next(k for k, block in enumerate(self._blocks) if at < block.stop)
        return k, at - self._blocks[k].start

    # How it is split, learned, predicted

    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        outputs = self.output_names
        positions = np.where(np.isnan(targets), -1, targets).astype(np.int64)
        return tuple(
            Strata(positions[:, k], outputs[block], name)
            for k, (name, block) in enumerate(zip(self.names, self._blocks, strict=True))
        )

    def loss_terms(self, targets: Targets) -> Tensor:
        """(C,) such that each target adds the same to the loss, however few slides have its label."""
        own = [_labelled(targets, k)[1] for k in range(len(self.tasks))]
        parts = zip(self.tasks, own, strict=True)
        return torch.cat([len(targets) / len(labels) * task.loss_terms(labels) for task, labels in parts])

    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        """The sum over the targets of which a slide has a label."""
        return self._summed([t.criterion(loss, terms[block], label_smoothing) for t, block in self._parts])

    def judged_by(self, terms: Tensor) -> Criterion:
        return self._summed([task.judged_by(terms[block]) for task, block in self._parts])

    @property
    def _parts(self) -> Iterator[tuple[Classification, slice]]:
        return zip(self.tasks, self._blocks, strict=True)

    def _summed(self, criteria: Sequence[Criterion]) -> Criterion:
        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            total = torch.zeros_like(logits[:, 0])
            for k, (criterion, block) in enumerate(zip(criteria, self._blocks, strict=True)):
                own = criterion(logits[:, block], targets[:, k].nan_to_num().long())
                total = total + own.masked_fill(targets[:, k].isnan(), 0)
            return total

        return losses

    def score(self, answers: Floats, targets: Targets) -> float:
        each = []
        for k, (task, block) in enumerate(self._parts):
            has, labels = _labelled(targets, k)
            each.append(task.score(answers[has][:, block], labels))
        return float(np.mean(each))

    def answers(self, logits: Tensor) -> Floats:
        return np.concatenate([task.answers(logits[..., block]) for task, block in self._parts], axis=-1)

    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """A classification's, for each target."""
        found = []
        for k, (task, block) in enumerate(self._parts):
            has, labels = _labelled(targets, k)
            found.append(task.calibrate(answers[has][:, block], labels, _labelled(trained_on, k)[1]))
        return {"calibrations": found}

    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        parts = zip(self.tasks, self._blocks, calibration["calibrations"], strict=True)
        return np.concatenate([task.calibrated(answers[..., block], own) for task, block, own in parts], axis=-1)

    def for_prevalence(self, calibration: Calibration, prevalence: float) -> Calibration:
        raise ValueError(f"the target is {self.noun}; a prevalence is of one")

    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        of_targets = zip(*(of["calibrations"] for of in calibrations), strict=True)
        return {"calibrations": [task.shared(own) for task, own in zip(self.tasks, of_targets, strict=True)]}

    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        said: list[str] = []
        of_target: dict[str, Any] = {}
        for (name, task), block, own in zip(self._each, self._blocks, calibration["calibrations"], strict=True):
            columns = task.columns(answer[block], own)
            said.append(f"{name}={columns['prediction']}")
            of_target |= {f"{name} {column}": value for column, value in columns.items()}
        return {"prediction": _BETWEEN.join(said), **of_target}

    @property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(f"{name} {column}" for name, task in self._each for column in task.value_columns)

    @property
    def further_columns(self) -> tuple[str, ...]:
        return tuple(f"{name} prediction" for name in self.names)

    def label(self, target: Any) -> str:
        """Of those targets of which there is one."""
        given = [(name, task, at) for (name, task), at in zip(self._each, target, strict=True) if not np.isnan(at)]
        return _BETWEEN.join(f"{name}={task.label(at)}" for name, task, at in given)

    def label_columns(self, label: str) -> dict[str, str]:
        return {"label": label, **{f"{name} label": self._classes([label], k)[0] for k, name in enumerate(self.names)}}

    def joint_label(self, labels: Sequence[str]) -> str:
        said = [sorted({*self._classes(labels, k)} - {""}) for k in range(len(self.names))]
        if any(len(of_target) > 1 for of_target in said):
            return ""
        return _BETWEEN.join(f"{name}={own[0]}" for name, own in zip(self.names, said, strict=True) if own)

    def label_at(self, label: str, at: int) -> str:
        own = set(self.output_names[self._blocks[self._at(at)[0]]])
        return next((part for part in label.split(_BETWEEN) if part in own), "")

    def _classes(self, texts: Sequence[str], k: int) -> list[str]:
        """What texts of labels or predictions say of target k, empty where they say nothing."""
        of_class = dict(zip(self.output_names[self._blocks[k]], self.tasks[k].classes, strict=True))
        return [next((of_class[part] for part in text.split(_BETWEEN) if part in of_class), "") for text in texts]

    def calibration_said(self, calibration: Calibration) -> str:
        each = zip(self._each, calibration["calibrations"], strict=True)
        return "".join(f"  {name} {said.strip()}" for (name, task), of in each if (said := task.calibration_said(of)))

    def spread_output(self, answer: Floats) -> int:
        """Of the target whose prediction is the least sure."""
        k = int(np.argmin([answer[block].max() for block in self._blocks]))
        block = self._blocks[k]
        return int(block.start) + self.tasks[k].spread_output(answer[block])

    def shown_output(self, answer: Floats) -> int:
        """Of the first target."""
        return self.tasks[0].shown_output(answer[self._blocks[0]])

    # How it is judged

    def table_of(self, table: pd.DataFrame, k: int) -> pd.DataFrame:
        """A prediction table as target k alone would have it: those rows that have its label."""
        labels = self._classes(table["label"].tolist(), k)
        own = table.assign(label=labels, **{c: table[f"{self.names[k]} {c}"] for c in self.tasks[k].value_columns})
        if "prediction" in table:
            own["prediction"] = self._classes(table["prediction"].tolist(), k)
        return own[own["label"] != ""]

    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        weights = draw_weights(table["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
        figures: dict[str, Any] = {"auroc": interval(self._mean_auroc(table, weights))}
        for k, (name, task) in enumerate(self._each):
            own = task.evaluate(self.table_of(table, k), bootstrap)
            figures |= {f"{name} {figure}": value for figure, value in own.items()}
        return figures

    def _mean_auroc(self, table: pd.DataFrame, weights: Floats) -> Floats:
        """(R,) under each row of weights (R, n)."""
        each, table = [], table.reset_index(drop=True)
        for k, task in enumerate(self.tasks):
            own = self.table_of(table, k)
            labels = np.array([task.classes.index(name) for name in own["label"]])
            said = own[list(task.value_columns)].to_numpy()
            each.append(macro_auroc(said, labels, weights[:, own.index], task.positive))
        return np.asarray(np.mean(each, axis=0))

    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        each = {name: task.counts(self.table_of(table, k)) for k, (name, task) in enumerate(self._each)}
        return {"slides_of_target": {name: of["slides_of_class"] for name, of in each.items()}}

    def found(self, table: pd.DataFrame) -> dict[str, Any] | None:
        """Of each target that has two classes, corrected for their number."""
        each = {name: task.found(self.table_of(table, k)) for k, (name, task) in enumerate(self._each)}
        return corrected({name: of for name, of in each.items() if of is not None}) or None

    def found_said(self, found: Mapping[str, Any]) -> Sequence[str]:
        return [f"{name}: {sentence}" for name, of in found.items() for sentence in self.tasks[0].found_said(of)]

    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        """Also of each target, under `targets`."""
        found, own = paired_difference(table, other, self._mean_auroc, bootstrap)
        targets = {
            name: task.against(self.table_of(table, k), self.table_of(other, k), bootstrap)
            for k, (name, task) in enumerate(self._each)
        }
        return {**asdict(found), "auroc": own, "targets": targets}

    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """A classification's, for each target."""
        fitted = []
        for k, task in enumerate(self.tasks):
            (has, labels), (held, held_labels) = (_labelled(of, k) for of in (targets, held_out[1]))
            fitted.append(task.fit_baseline(vectors[has], labels, (held_out[0][held], held_labels)))
        return lambda others: np.concatenate([of(others) for of in fitted], axis=1)

    def judge(self, table: pd.DataFrame) -> Judged:
        """shown: the lowest probability of a slide's own labels, whose loss is its loss."""
        table = table.reset_index(drop=True)
        right, shown, loss = np.ones(len(table), bool), np.full(len(table), np.inf), np.full(len(table), -np.inf)
        for k, task in enumerate(self.tasks):
            if len(own := self.table_of(table, k)):
                judged, at = task.judge(own), own.index
                right[at] &= judged.right
                shown[at], loss[at] = np.minimum(shown[at], judged.shown), np.maximum(loss[at], judged.loss)
        return Judged(right, shown, loss)

    # What maps show, and what it is called

    def shown_logits(self, logits: Floats, calibration: Calibration) -> Floats:
        parts = zip(self.tasks, self._blocks, calibration["calibrations"], strict=True)
        return np.concatenate([task.shown_logits(logits[:, block], own) for task, block, own in parts], axis=1)

    def patch_scores(self, logits: Floats, at: int) -> Floats:
        k, place = self._at(at)
        return self.tasks[k].patch_scores(logits[:, self._blocks[k]], place)

    def shares(self, parts: Floats, at: int) -> Floats:
        k, place = self._at(at)
        return self.tasks[k].shares(parts[:, self._blocks[k]], place)

    def scored(self, at: int) -> str:
        return f"log-odds of {self.output_names[at]}"

    def say(self, answer: Floats, at: int) -> Said:
        name = self.output_names[at]
        return Said(f"probability of {name}", f"P({name})", f"{answer[at]:.2f}")

    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        each = [
            OfTarget(name, task.sections, self.table_of(predictions, k)) for k, (name, task) in enumerate(self._each)
        ]
        return several_sections(each, metrics, bootstrap)

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        return [(f"{sum(of.values()):,}", f"with {name}") for name, of in counts["slides_of_target"].items()]

    def figure_title(self, name: str) -> str:
        target, _, figure = name.rpartition(" ")
        title = self.tasks[0].figure_title(figure)
        return f"{target}: {title}" if target else f"{title}, mean of targets"

    def describe(self, column: str, targets: Targets) -> str:
        lines = []
        for k, (name, task) in enumerate(self._each):
            has, labels = _labelled(targets, k)
            missing = f"; {np.sum(~has)} without" if not has.all() else ""
            lines.append(task.describe(name, labels) + missing)
        return "\n".join(lines)

    @property
    def figure_titles(self) -> Mapping[str, str]:
        names = ["auroc", *(f"{name} {figure}" for name in self.names for figure in _SHOWN)]
        return {name: self.figure_title(name) for name in names}

    def figure_notes(self) -> Sequence[str]:
        return ["figures of a target are of the slides that have its label", *self.tasks[0].figure_notes()[:1]]

    def differs_from(self, other: Task) -> str:
        same = isinstance(other, Several) and (other.names, other.output_names) == (self.names, self.output_names)
        return "" if same else f"has other targets or classes than {', '.join(self.output_names)}"


def _labelled(targets: Targets, k: int) -> tuple[NDArray[np.bool_], Indices]:
    """Which slides (n,) have a label of target k, and these labels."""
    has = ~np.isnan(targets[:, k])
    return has, targets[has, k].astype(np.int64)


def _unlabelled(rows: Sequence[SlideRow], names: Sequence[str]) -> list[str]:
    """Of patients as bags; a slide table is refused where a row has no label."""
    without = sorted({row.patient_id for row in rows if not any(row.labels[name] for name in names)})
    return [
        f"patient {name}: {', '.join(names)} are all empty; fill one in, or leave the patient out" for name in without
    ]


TASK = Several
