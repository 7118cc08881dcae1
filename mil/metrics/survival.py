"""Figures of predicted risks and survival with 95 % intervals over patients, see mil.metrics.bootstrap.

c_index is Harrell's C (JAMA 1982): of two rows of which one is known to have had its event first, how often it has the
higher risk; c_uno is Uno's (Statistics in Medicine 2011), in which censoring has no say, up to the last of the given
times. auc_at is the time-dependent AUC of those with an event by then against those still without (cumulative and
dynamic, Uno et al. 2007), auc its mean over the times. ibs is the Brier score of the predicted survival, integrated
over the times (Graf et al. 1999); ibs_km is that of Kaplan and Meier's curve of these very rows, the same for all, and
ipa one less their ratio (Kattan and Gerds 2018): 0 is no better than that curve. hazard_ratio is of the rows with risk
above 0 against the others (Cox, ties by Breslow).

Equal risks count one half. A row that is censored when another has its event outlives it. Rows that came under
observation later than at 0 are at risk after that alone (left truncation): in the C-index two rows are compared where
both are at risk at the event; figures with weights against censoring are not defined then and are left out.

Weights against censoring are one over the chance not to be censored before, by Kaplan and Meier's estimate in each draw
itself. Libraries have these figures without weights, and so without an interval over patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights, interval
from mil.metrics.classification import weighted_auroc

CENSORED = "+"  # behind the time of a label


@dataclass(frozen=True)
class Followed:
    """How long n rows were followed, and whether the event was seen then."""

    time: Floats  # (n,)
    event: NDArray[np.bool_]  # (n,)
    entry: Floats | None = None  # (n,) when they came under observation, before `time`; None: all at the beginning

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Followed":
        return Followed(self.time[rows], self.event[rows], None if self.entry is None else self.entry[rows])


@dataclass(frozen=True)
class Predicted:
    """What was predicted for n rows."""

    risk: Floats  # (n,) above 0: more than usual
    times: Floats  # (T,) rising
    survival: Floats  # (n, T) probability to be without event at each time


def survival_column(time: float) -> str:
    return f"survival_{time:g}"


def followed_of(table: pd.DataFrame) -> Followed:
    """Of the labels of a prediction table, such as `12.5`, or `12.5+` where no event was seen by then.

    With times of entry they are `(3,12.5]` and `(3,12.5+]`.
    """
    labels, entry = table["label"].astype(str), None
    if labels.str.startswith("(").any():
        parts = labels.str.strip("(]").str.split(",", expand=True)
        entry, labels = parts[0].to_numpy(str).astype(np.float64), parts[1]
    time = labels.str.removesuffix(CENSORED).to_numpy(str).astype(np.float64)
    return Followed(time, ~labels.str.endswith(CENSORED).to_numpy(bool), entry)


def label_of(time: str, event: bool, entry: str | None = None) -> str:
    """What `followed_of` reads."""
    told = time + ("" if event else CENSORED)
    return told if entry is None else f"({entry},{told}]"


def predicted_of(table: pd.DataFrame, times: Sequence[float]) -> Predicted:
    survival = table[[survival_column(time) for time in times]].to_numpy(np.float64)
    return Predicted(table["risk"].to_numpy(np.float64), np.array(times), survival)


def evaluate_survival(table: pd.DataFrame, times: Sequence[float], bootstrap: Bootstrap) -> dict[str, Any]:
    """All figures of a prediction table (columns patient_id, label, risk, survival_<time>…)."""
    weights = draw_weights(table["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
    followed, said = followed_of(table), predicted_of(table, times)
    harrell, uno = concordance(followed, said.risk, weights, said.times[-1])
    ratio = hazard_ratio(followed, said.risk > 0, weights)
    if followed.entry is not None:
        return {"c_index": interval(harrell), "hazard_ratio": interval(ratio)}
    aucs = auc_at(followed, said, weights)
    ibs, ibs_km = (
        integrated(brier_at(followed, said.times, of, weights), said.times)
        for of in (said.survival, kaplan_meier_at(followed, said.times, weights))
    )
    figures = {
        **{"c_index": harrell, "c_uno": uno, "auc": aucs.mean(axis=1), "ibs": ibs, "ibs_km": ibs_km},
        "ipa": 1 - _ratio(ibs, ibs_km),
        "hazard_ratio": ratio,
    }
    at = {f"{time:g}": interval(auc) for time, auc in zip(times, aucs.T, strict=True)}
    return {**{name: interval(values) for name, values in figures.items()}, "auc_at": at}


def concordance(followed: Followed, risk: Floats, weights: Floats, until: float) -> tuple[Floats, Floats]:
    """Harrell's and Uno's C of risks (n,) under weights (R, n), each (R,); Uno's of events before `until`.

    Uno's has no meaning where rows came under observation late.

    The matrices of pairs are float32, in which sums of small whole numbers are exact.
    """
    time, event = followed.time, followed.event
    first = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))  # (n, n)
    if followed.entry is not None:
        first &= followed.entry < time[:, None]
    right = first * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk))
    small = weights.astype(np.float32)
    pairs, hits = ((small @ of.astype(np.float32).T).astype(np.float64) for of in (first, right))  # (R, n)
    against_censoring = _ratio(weights * (time < until), uncensored(followed, weights)[0] ** 2, 0.0)
    harrell, uno = (
        _ratio((of * hits).sum(axis=1), (of * pairs).sum(axis=1)) for of in (weights, against_censoring * event)
    )
    return harrell, uno


def auc_at(followed: Followed, said: Predicted, weights: Floats) -> Floats:
    """(R, T)"""
    before = uncensored(followed, weights)[0]
    columns = []
    for time in said.times:
        case, known = followed.event & (followed.time <= time), followed.time > time
        of_time = np.where(case, _ratio(weights, before, 0.0), weights * known)
        there = case | known
        columns.append(weighted_auroc(said.risk[there], case[there], of_time[:, there]))
    return np.stack(columns, axis=1)


def brier_at(followed: Followed, times: Floats, survival: Floats, weights: Floats) -> Floats:
    """Brier scores (R, T) of survival, (n, T) or for all rows alike (R, T), under weights (R, n)."""
    before, at = uncensored(followed, weights, times)
    columns = []
    for t, time in enumerate(times):
        said = survival[:, t] if len(survival) == len(followed.time) else survival[:, t, None]  # (n,) or (R, 1)
        died = said**2 * _ratio(weights * (followed.event & (followed.time <= time)), before, 0.0)
        lives = (1 - said) ** 2 * _ratio(weights * (followed.time > time), at[:, t, None], 0.0)
        columns.append(_ratio((died + lives).sum(axis=1), weights.sum(axis=1)))
    return np.stack(columns, axis=1)


def integrated(scores: Floats, times: Floats) -> Floats:
    """(R, T) -> (R,), the mean over the time from the first to the last."""
    if len(times) == 1:
        return scores[:, 0]
    return np.asarray(np.trapezoid(scores, times, axis=1) / (times[-1] - times[0]))


def kaplan_meier_at(followed: Followed, times: Floats, weights: Floats) -> Floats:
    """Share (R, T) without event at each of the times (T,), under each row of weights (R, n)."""
    steps, _, died = _by_time(followed, weights)
    return _at(steps, np.cumprod(1 - _ratio(died, _at_risk(followed, weights), 0.0), axis=1), times)


def uncensored(followed: Followed, weights: Floats, times: Floats | None = None) -> tuple[Floats, Floats]:
    """Chance not to be censored before each row's own time (R, n), and up to and with each of the times (R, T).

    Those with an event leave before those who are censored at the same time.
    """
    steps, leaving, died = _by_time(followed, weights)
    left = np.cumprod(1 - _ratio(leaving - died, _from_behind(leaving) - died, 0.0), axis=1)  # (R, G)
    before = np.hstack([np.ones((len(left), 1)), left])[:, np.searchsorted(steps, followed.time, side="left")]
    return before, _at(steps, left, np.empty(0) if times is None else times)


def hazard_ratio(followed: Followed, high: NDArray[np.bool_], weights: Floats) -> Floats:
    """(R,) of the rows `high` (n,) against the others; NaN where one of the two has no event or is empty.

    Where all events of one come before those of the other no finite ratio is the best: 1,000 or 1 in 1,000 stands then.
    """
    died, died_high = (_by_time(followed, of)[2] for of in (weights, weights * high))
    own, others = (_at_risk(followed, weights * of) for of in (high, ~high))
    of_high, total = died_high.sum(axis=1), died.sum(axis=1)
    log_ratio = np.zeros(len(weights))
    for _ in range(30):  # Newton's method
        share = _ratio(own * np.exp(log_ratio)[:, None], own * np.exp(log_ratio)[:, None] + others, 0.0)
        score, information = of_high - (died * share).sum(axis=1), (died * share * (1 - share)).sum(axis=1)
        log_ratio += np.clip(_ratio(score, information, 0.0), -1, 1)
    return np.where((of_high > 0) & (of_high < total), np.clip(np.exp(log_ratio), 1e-3, 1e3), np.nan)


def log_rank(followed: Followed, high: NDArray[np.bool_]) -> float:
    """Two-sided p for one hazard of the rows `high` (n,) and the others (Mantel 1966); 1 where nothing is known."""
    ones = np.ones((1, len(high)))
    died, died_high = (_by_time(followed, of)[2][0] for of in (ones, ones * high))
    all_, own = (_at_risk(followed, of)[0] for of in (ones, ones * high))
    share = own / np.maximum(all_, 1)
    variance = (died * share * (1 - share) * (all_ - died) / np.maximum(all_ - 1, 1)).sum()
    return float(chi2.sf((died_high - died * share).sum() ** 2 / variance, 1)) if variance > 0 else 1.0


def _at_risk(followed: Followed, weights: Floats) -> Floats:
    """Weight (R, G) of those who are under observation at each distinct time, and have been before it."""
    steps, leaving, _ = _by_time(followed, weights)
    at_risk = _from_behind(leaving)
    if followed.entry is None:
        return at_risk
    order = np.argsort(followed.entry, kind="stable")
    entered = np.hstack([np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)])
    late = entered[:, -1:] - entered[:, np.searchsorted(followed.entry[order], steps, side="left")]
    return np.asarray(np.maximum(at_risk - late, 0.0))


def _by_time(followed: Followed, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct times (G,), and the weight (R, G) of those who leave at each and of those who have their event."""
    order = np.argsort(followed.time, kind="stable")
    steps, starts = np.unique(followed.time[order], return_index=True)
    leaving = np.add.reduceat(weights[:, order], starts, axis=1)
    return steps, leaving, np.add.reduceat((weights * followed.event)[:, order], starts, axis=1)


def _from_behind(values: Floats) -> Floats:
    """Sums (R, G) of each value and all behind it."""
    return np.asarray(values[:, ::-1].cumsum(axis=1)[:, ::-1])


def _at(steps: Floats, values: NDArray[np.floating[Any]], times: Floats) -> Floats:
    """A step function that is 1 before the first of steps (G,) and values (R, G) from each on, at times (T,)."""
    return np.asarray(np.hstack([np.ones((len(values), 1)), values])[:, np.searchsorted(steps, times, side="right")])


def _ratio(numerator: Floats, denominator: Floats, otherwise: float = np.nan) -> Floats:
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
