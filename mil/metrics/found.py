"""Whether a run on two classes found anything, by a test that knows how often it is wrong.

The test patients of a fold were seen by none of its models. Where labels have nothing to do with slides, each order of
a fold's patients by probability is as likely as any other, and the Mann–Whitney statistics of the folds can be added
(van Elteren, Bulletin of the International Statistical Institute 37, 1960). But folds are not independent: a label that
is tested here taught a model there. Where a model is a sum of what each training label says, what two folds have to say
of each other is the same sum twice, so the variance of the total is twice that of independent folds, however many there
are; and so much is taken. Repeats test the same patients again, so their mean counts as one of them.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

FALSE_ALARMS = 0.05  # of runs on labels without meaning, the part that is said to have found something
_DEPENDENCE = 2  # variance of a sum over folds, in that of independent ones


def found(table: pd.DataFrame, probability: str, positive: str | bool) -> dict[str, Any]:
    """p, and whether it is small enough, of predictions (repeat, fold, patient_id, label, and the named probability).

    A patient counts with the mean of its slides, and not at all if they carry different labels. least_p is that of
    test patients in perfect order: where they are so few that it is not small enough, found is None. All are None where
    no fold tests patients of both labels.
    """
    patients = table.groupby(["repeat", "fold", "patient_id"]).agg(
        labels=("label", "nunique"), label=("label", "first"), score=(probability, "mean")
    )
    folds = [
        (repeat, fold["score"].to_numpy(np.float64), (fold["label"] == positive).to_numpy())
        for (repeat, _), fold in patients[patients["labels"] == 1].groupby(["repeat", "fold"])
        if fold["label"].nunique() == 2
    ]
    if not folds:
        return {"p": None, "found": None, "least_p": None}
    p = _p_value([(repeat, *_rank_sum(scores, of)) for repeat, scores, of in folds])
    least_p = _p_value([(repeat, *_rank_sum(of.argsort(kind="stable").argsort(), of)) for repeat, _, of in folds])
    return {"p": p, "found": p <= FALSE_ALARMS if least_p <= FALSE_ALARMS else None, "least_p": least_p}


def corrected(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same of several targets, such that one false alarm among all is as rare (Holm 1979)."""
    tested = [name for name in found if found[name]["found"] is not None]
    held, so_far = dict(found), 0.0
    for rank, name in enumerate(sorted(tested, key=lambda name: float(found[name]["p"]))):
        p, least_p = (min(1.0, (len(tested) - rank) * found[name][key]) for key in ("p", "least_p"))
        so_far = max(so_far, p)
        held[name] = {
            "p": so_far,
            "found": so_far <= FALSE_ALARMS if least_p <= FALSE_ALARMS else None,
            "least_p": least_p,
        }
    return held


def _p_value(folds: Sequence[tuple[Hashable, float, float]]) -> float:
    """Of each fold's repeat, excess and variance."""
    table = pd.DataFrame(folds, columns=["repeat", "excess", "variance"]).groupby("repeat")
    repeats = table.sum()
    excess, variance = repeats["excess"].mean(), (repeats["variance"] * table.size().clip(upper=_DEPENDENCE)).mean()
    return float(norm.sf(excess / np.sqrt(variance))) if variance else 1.0


def _rank_sum(scores: NDArray[Any], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """By how much the sum of positive ranks exceeds what chance puts there, and the variance that chance gives it.

    With van Elteren's weight of a fold.
    """
    ranks, count = rankdata(scores), len(scores)
    excess = ranks[positive].sum() - positive.sum() * (count + 1) / 2
    variance = positive.sum() * (~positive).sum() / count * ranks.var(ddof=1)
    return float(excess / (count + 1)), float(variance / (count + 1) ** 2)
