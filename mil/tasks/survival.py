"""Survival: each slide's patient was followed for some time, at whose end the event was seen or not (censored).

A head's one output is a log hazard: how much more likely than usual the event is at any time (Cox, JRSS B 1972), `risk`
in tables. It is learnt by the full likelihood with the cumulative hazard of the training part itself as the baseline
(Nelson and Aalen's estimate; LeBlanc and Crowley, "Relative risk trees for censored survival data", Biometrics 1992):
so each slide has a loss of its own, whatever is in its batch, and the risk sets behind the baseline hold all slides of
the training part, tied events by Breslow. `discrete-time` knows of each event only in which of ten spans it was seen,
whose ends are quantiles of the events (Prentice and Gloeckler, "Regression analysis of grouped survival data",
Biometrics 1978): for times that were rounded or are those of visits.

Calibration learns from slides that no weight was fitted to: by what to multiply the risk, the median risk, which is
taken off, and the cumulative hazard of such a median slide up to each of nine times, such that mean predicted survival
is Kaplan and Meier's estimate. Answers are the risk, then the survival up to each of these times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from mil.metrics.bootstrap import Bootstrap, Floats
from mil.metrics.difference import paired_difference
from mil.metrics.survival import (
    Followed,
    concordance,
    evaluate_survival,
    followed_of,
    kaplan_meier_at,
    label_of,
    predicted_of,
    survival_column,
)
from mil.pages.parts import Section
from mil.tasks.cox import fit_cox, fit_slope
from mil.tasks.losses import Criterion
from mil.tasks.numbers import number_text, read_numbers
from mil.tasks.reports.figures import title
from mil.tasks.reports.survival import FIGURES, survival_sections
from mil.tasks.task import Calibration, Judged, Said, Strata, Target, Targets, Task
from tiling.manifest import SlideRow

_KNOTS = 100  # times at which the baseline rises, those of the events themselves where they are not more
_SPANS = 10  # of discrete time
_LEAST_BASELINE = 1e-3  # for an event before the first one in training
_LINEAR = 5.0  # log hazard from which on its exponential is drawn out straight: no slide outweighs all others
_LEAST_EVENTS = 10  # of which five folds have two each
_REPORTED = np.arange(1, 10) / 10  # of the events: by then times are reported on
_SLIDES_A_STRATUM = 40  # that are worth to be split into early and late
_STEEPEST = 2.0  # by which a risk is multiplied at most: the same slides chose the epoch
_OF_LATE_ENTRIES = ("c_index", "hazard_ratio")  # figures that need no weights against censoring
_LEAST = 1e-6  # survival that a loss is taken of


@dataclass(frozen=True)
class Survival(Task):
    """Targets are (S, 2) float64: time, and 1 where the event was seen, else 0; (S, 3) with the time of entry."""

    column: str  # of the slide table: time
    event: str  # of the slide table: 1 or 0
    times: tuple[float, ...]  # T, in the unit of the column, at which survival is reported
    entry: str = ""  # of the slide table: when the patient came under observation

    kind = "survival"
    losses = ("full-likelihood", "discrete-time")
    watched = "c_index"
    headline = "c_index"
    baseline = "Cox regression on mean features"
    judged_title = "risk"
    wrong_title = ""
    patch_score = "patch risk"
    output_names = ("risk",)

    @classmethod
    def read(cls, rows: Sequence[SlideRow], target: Target, table: str) -> tuple[Self, Targets]:
        time, event = target.column, target.event
        if target.positive:
            raise ValueError(f"--positive is for two classes; {time!r} is a time")
        if event not in rows[0].labels:
            raise ValueError(
                f"no column {event!r} in {table}; --event names the one that is 1 where the event was seen at the end "
                f"of {time!r} and 0 where it was not; the label columns are {', '.join(map(repr, rows[0].labels))}"
            )
        if target.entry and target.entry not in rows[0].labels:
            raise ValueError(
                f"no column {target.entry!r} in {table}; --entry names the one that says when a patient came under "
                f"observation; the label columns are {', '.join(map(repr, rows[0].labels))}"
            )
        numbers, faults = read_numbers(rows, time)
        for row, number in sorted(zip(rows, numbers.tolist(), strict=True), key=lambda both: both[0].number):
            if number < 0:
                faults.append(f"row {row.number}: {time} is {row.labels[time]}, expected 0 or more")
            if row.labels[event] not in ("0", "1"):
                said = row.labels[event]
                faults.append(f"row {row.number}: {event} is {said!r}, expected 1 (seen) or 0 (not seen by then)")
        entries, late = _read_entries(rows, target, numbers)
        faults += late + _disagreements(rows, target.columns)
        if faults:
            raise ValueError("\n".join(faults))
        seen = np.array([row.labels[event] == "1" for row in rows])
        if seen.sum() < _LEAST_EVENTS:
            raise ValueError(f"{event} is 1 for {int(seen.sum())} of {len(rows)}; {_LEAST_EVENTS} are needed")
        times = np.unique([float(f"{t:.3g}") for t in np.quantile(numbers[seen], _REPORTED)])
        return cls(time, event, tuple(times.tolist()), target.entry), np.stack([numbers, seen, *entries], axis=1)

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        times = tuple(float(t) for t in described["times"])
        return cls(described["column"], described["event"], times, described.get("entry", ""))

    def provenance(self) -> dict[str, Any]:
        entry = {"entry": self.entry} if self.entry else {}
        return {"column": self.column, "event": self.event, "times": list(self.times), **entry}

    state = provenance

    def strata(self, targets: Targets) -> tuple[Strata, ...]:
        """Event or not where each is frequent enough, and early or late inside of these where they are many."""
        of_slide, names = np.zeros(len(targets), np.int64), list[str]()
        event = targets[:, 1] > 0
        groups = {"event": event, "no event": ~event}
        if min(own.sum() for own in groups.values()) < _LEAST_EVENTS:
            groups = {"followed": np.ones(len(targets), bool)}
        for name, own in groups.items():
            middle = np.median(targets[own, 0])
            late = own & (targets[:, 0] > middle)
            parted = late.any() and (own.sum() >= _SLIDES_A_STRATUM or len(groups) == 1)
            of_slide[own], names = len(names), [*names, f"{name} up to {middle:g}" if parted else name]
            if parted:
                of_slide[late], names = len(names), [*names, f"{name} after {middle:g}"]
        return (Strata(of_slide, tuple(names)),)

    def loss_terms(self, targets: Targets) -> Tensor:
        """(200,) times at which the cumulative hazard of these slides rises, then by how much."""
        time, event = targets[:, 0], targets[:, 1] > 0
        knots = np.quantile(time[event], np.arange(1, _KNOTS + 1) / _KNOTS, method="inverted_cdf")
        at_risk = len(time) - np.searchsorted(np.sort(time), time[event], side="left")
        if self.entry:
            at_risk -= len(time) - np.searchsorted(np.sort(targets[:, 2]), time[event], side="left")
        rises = np.zeros(_KNOTS)
        np.add.at(rises, np.searchsorted(knots, time[event], side="left"), 1 / at_risk)
        return torch.from_numpy(np.concatenate([knots, rises])).float()

    def criterion(self, loss: str, terms: Tensor, label_smoothing: float = 0.0) -> Criterion:
        """Minus the log-likelihood; the full one less its smallest value for any output: half the deviance."""
        if loss not in self.losses:
            raise KeyError(loss)
        if loss == "discrete-time":
            return partial(_in_discrete_time, terms)
        knots, rises = terms[:_KNOTS], terms[_KNOTS:]

        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            time, event = targets[:, :1].to(knots), targets[:, 1].to(knots)
            passed = time >= knots
            if self.entry:
                passed = passed & (targets[:, 2:].to(knots) < knots)
            baseline = (passed * rises).sum(1)
            hazard = _relative(logits)
            known = 1 + baseline.clamp(min=_LEAST_BASELINE).log()
            return baseline * hazard - event * (logits[:, 0] + known)

        return losses

    def judged_by(self, terms: Tensor) -> Criterion:
        return self.criterion("full-likelihood", terms)

    def score(self, answers: Floats, targets: Targets) -> float:
        followed = _followed(targets)
        return float(concordance(followed, answers[:, 0], np.ones((1, len(targets))), np.inf)[0][0])

    def answers(self, logits: Tensor) -> Floats:
        answers: Floats = logits.cpu().numpy()
        return answers

    def calibrate(self, answers: Floats, targets: Targets, trained_on: Targets) -> Calibration:
        """slope, centre, and cumulative hazards (T,) of a slide at the centre."""
        slope = fit_slope(answers[:, 0], targets, _STEEPEST)
        centre = float(np.median(slope * answers[:, 0])) if len(answers) else 0.0
        relative = np.exp(slope * answers[:, 0] - centre) if len(answers) else np.ones(1)
        everyone = np.concatenate([trained_on, targets])
        followed = _followed(everyone)
        survival = kaplan_meier_at(followed, np.array(self.times), np.ones((1, len(everyone))))[0]
        hazards = [_hazard_for(share, relative) for share in np.clip(survival, 1e-3, 1 - 1e-3)]
        return {"slope": slope, "centre": centre, "hazards": hazards}

    def calibrated(self, answers: Floats, calibration: Calibration) -> Floats:
        risk = calibration["slope"] * answers[..., :1] - calibration["centre"]
        return np.concatenate([risk, np.exp(-np.exp(risk) * np.array(calibration["hazards"]))], axis=-1)

    def shared(self, calibrations: Sequence[Calibration]) -> Calibration:
        return {}

    def columns(self, answer: Floats, calibration: Calibration) -> dict[str, Any]:
        """The cut of the two groups is the median risk of the slides that calibration saw."""
        group = "high risk" if answer[0] > 0 else "low risk"
        return {"prediction": group, **dict(zip(self.value_columns, answer, strict=True))}

    @property
    def value_columns(self) -> tuple[str, ...]:
        return ("risk", *map(survival_column, self.times))

    def label(self, target: Any) -> str:
        return label_of(number_text(target[0]), target[1] > 0, number_text(target[2]) if self.entry else None)

    def calibration_said(self, calibration: Calibration) -> str:
        return f"  slope {calibration['slope']:.2f}"

    def shown_output(self, answer: Floats) -> int:
        return 0

    def evaluate(self, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        return evaluate_survival(table, self.times, bootstrap)

    def counts(self, table: pd.DataFrame) -> dict[str, Any]:
        followed = followed_of(table)
        return {"events": int(followed.event.sum()), "longest": float(followed.time.max())}

    def against(self, table: pd.DataFrame, other: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
        def c_index(of: pd.DataFrame, weights: Floats) -> Floats:
            return concordance(followed_of(of), of["risk"].to_numpy(np.float64), weights, np.inf)[0]

        found, own = paired_difference(table, other, c_index, bootstrap)
        return {**asdict(found), "c_index": own}

    def fit_baseline(
        self, vectors: Floats, targets: Targets, held_out: tuple[Floats, Targets]
    ) -> Callable[[Floats], Floats]:
        """Cox regression with a ridge penalty, calibrated like a head."""
        risks = fit_cox(vectors, targets, held_out)
        seen = risks(held_out[0])[:, None] if len(held_out[1]) else np.empty((0, 1))
        calibration = self.calibrate(seen, held_out[1], targets)
        return lambda others: self.calibrated(risks(others)[:, None], calibration)

    def judge(self, table: pd.DataFrame) -> Judged:
        """loss: half the deviance of what was seen, by the cumulative hazard up to its time, from that of entry on.

        Therneau, Grambsch and Fleming, "Martingale-based residuals for survival models", Biometrika 1990.
        """
        followed, said = followed_of(table), predicted_of(table, self.times)
        hazards = np.hstack([np.zeros((len(table), 1)), -np.log(np.maximum(said.survival, _LEAST))])
        rows = np.arange(len(table))
        passed = hazards[rows, np.searchsorted(said.times, followed.time, side="right")]
        if followed.entry is not None:
            passed = passed - hazards[rows, np.searchsorted(said.times, followed.entry, side="right")]
        known = 1 + np.log(np.maximum(passed, _LEAST_BASELINE))
        return Judged(np.ones(len(table), bool), said.risk, passed - followed.event * known)

    def scored(self, at: int) -> str:
        return "risk (log hazard)"

    def say(self, answer: Floats, at: int) -> Said:
        return Said("risk (log hazard, 0 is usual)", "risk", f"{answer[0]:+.2f}")

    def sections(
        self, metrics: Mapping[str, Any], predictions: pd.DataFrame, bootstrap: Bootstrap
    ) -> Sequence[Section]:
        return survival_sections(self.column, self.times, metrics, predictions, bootstrap)

    def facts(self, counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        return [(f"{counts['events']:,}", "events")]

    def figure_title(self, name: str) -> str:
        return title(name, FIGURES)

    def describe(self, column: str, targets: Targets) -> str:
        time, event = targets[:, :2].T
        median = np.median(time)
        return f"target {column}: {int(event.sum())} events in {len(time)}, followed for {median:.4g} (median)"

    @property
    def figure_titles(self) -> Mapping[str, str]:
        return {name: title(name, FIGURES) for name in FIGURES if not self.entry or name in _OF_LATE_ENTRIES}

    def figure_notes(self) -> Sequence[str]:
        ipa = "" if self.entry else "; IPA is 0 for Kaplan and Meier's curve"
        return [f"C is the share of pairs in the right order, 0.5 is guessing{ipa}"]

    def differs_from(self, other: Task) -> str:
        return "" if isinstance(other, Survival) else "asks for no survival"


def _relative(logits: Tensor) -> Tensor:
    """(B,) hazards relative to the usual one."""
    return logits[:, 0].clamp(max=_LINEAR).exp() * (1 + (logits[:, 0] - _LINEAR).clamp(min=0))


def _in_discrete_time(terms: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) by those `loss_terms`: spans before that of an event, or whole ones up to the censoring, were survived.

    Who enters within a span is at risk in it.
    """
    ends, rises = terms[:_KNOTS].view(_SPANS, -1)[:, -1], terms[_KNOTS:].view(_SPANS, -1).sum(1)
    time, event = targets[:, :1].to(ends), targets[:, 1:2].to(ends)  # (B, 1)
    spans = torch.arange(_SPANS, device=ends.device)
    own = (ends < time).sum(1, keepdim=True).clamp(max=_SPANS - 1)
    survived = torch.where(event > 0, spans < own, ends <= time)
    if targets.shape[1] > 2:
        survived = survived & (ends > targets[:, 2:].to(ends))
    hazard = _relative(logits)
    in_own = ((spans == own) * rises).sum(1).clamp(min=_LEAST_BASELINE) * hazard
    return (survived * rises).sum(1) * hazard - event[:, 0] * torch.log(-torch.expm1(-in_own))


def _hazard_for(survival: float, relative: Floats) -> float:
    """The cumulative hazard for which slides with hazards (n,) relative to it survive with this mean probability."""
    largest = -np.log(survival) / relative.min() * 1.001  # where all are alike, rounding would leave it short
    return float(brentq(lambda hazard: np.exp(-hazard * relative).mean() - survival, 0.0, largest))


def _followed(targets: Targets) -> Followed:
    return Followed(targets[:, 0], targets[:, 1] > 0, targets[:, 2] if targets.shape[1] > 2 else None)


def _read_entries(rows: Sequence[SlideRow], target: Target, times: Floats) -> tuple[list[Floats], list[str]]:
    """Times of entry (S,), none if there is no such column, and a line for each row where it is not before its time."""
    if not (column := target.entry):
        return [], []
    entries, faults = read_numbers(rows, column)
    for row, entry, time in sorted(zip(rows, entries, times, strict=True), key=lambda each: each[0].number):
        if entry < 0 or entry >= time:
            faults.append(
                f"row {row.number}: {column} is {row.labels[column]}, expected 0 or more and less than "
                f"{target.column}, which is {row.labels[target.column]}"
            )
    return [entries], faults


def _disagreements(rows: Sequence[SlideRow], columns: Sequence[str]) -> list[str]:
    """A line for each row that says otherwise than an earlier one of its patient."""
    first: dict[str, SlideRow] = {}
    faults = []
    for row in sorted(rows, key=lambda row: row.number):
        own = first.setdefault(row.patient_id, row)
        faults += [
            f"row {row.number}: patient {row.patient_id!r} has {name} {row.labels[name]!r} here and "
            f"{own.labels[name]!r} in row {own.number}"
            for name in columns
            if row.labels[name] != own.labels[name]
        ]
    return faults


TASK = Survival
