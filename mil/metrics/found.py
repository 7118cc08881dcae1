"""Whether a run on two classes found anything, by a test that knows how often it is wrong.

The test patients of a fold were seen by none of its models. Where labels have nothing to do with slides, their order by
probability is a random one, and the Mann–Whitney test that positive patients stand higher has a p value that holds for
the fold. Folds are not independent: a label that is tested here taught a model there, and a test of all of them pooled
finds something in nothing about one time in ten. So their p values are joined by the Cauchy combination test (Liu and
Xie, Journal of the American Statistical Association 115, 2020), whose small p values hardly feel what depends on what.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

FALSE_ALARMS = 0.05  # of runs on labels without meaning, the part that is said to have found something
_LARGEST_P = 0.99  # one fold in which all stand the wrong way must not outweigh all others


def found(table: pd.DataFrame, probability: str, positive: str) -> dict[str, Any]:
    """p, and whether it is small enough, of predictions (repeat, fold, patient_id, label, and the named probability).

    A patient counts with the mean of its slides, and not at all if they carry different labels. least_p is that of
    test patients in perfect order: where they are so few that it is not small enough, found is None. All are None where
    no fold tests patients of both labels.
    """
    patients = table.groupby(["repeat", "fold", "patient_id"]).agg(
        labels=("label", "nunique"), label=("label", "first"), score=(probability, "mean")
    )
    p_values, least = [], []
    for _, fold in patients[patients["labels"] == 1].groupby(["repeat", "fold"]):
        is_positive = fold["label"] == positive
        if is_positive.any() and not is_positive.all():
            own, other = (fold.loc[of, "score"].to_numpy(np.float64) for of in (is_positive, ~is_positive))
            p_values.append(float(mannwhitneyu(own, other, alternative="greater").pvalue))
            perfect = np.arange(len(own)) + len(other), np.arange(len(other))
            least.append(float(mannwhitneyu(*perfect, alternative="greater").pvalue))
    if not p_values:
        return {"p": None, "found": None, "least_p": None}
    p, least_p = joined(p_values), joined(least)
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


def joined(p_values: list[float]) -> float:
    """Cauchy combination."""
    each = np.tan((0.5 - np.minimum(p_values, _LARGEST_P)) * np.pi)
    return float(0.5 - np.arctan(each.mean()) / np.pi)
