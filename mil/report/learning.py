"""The learning curves of a run and what they say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil.evaluation.curve_verdict import REMEDIES, Name, Verdict, judge_all, judge_fold
from mil.pages import parts
from mil.pages.chart import Chart
from mil.pages.parts import Figures, Paragraph, Part, Picture, Points, Section, Tag
from mil.run.tables import by_member, fitted_at_once, kept_epoch

_HIGHEST_LOSS = 3.0  # of the losses at the start: beyond, a curve that runs away would flatten the others
_BAD: tuple[Name, ...] = ("unstable", "does not learn")


def learning_section(histories: Mapping[int, pd.DataFrame], most_epochs: int, counts: Mapping[str, Any]) -> Section:
    """histories: history.csv by number of the fold over all repeats; counts: of metrics.json."""
    curves = {
        n: h for n, h in histories.items() if len(h) and np.isfinite(h[["train_loss", "val_loss"]]).all(axis=None)
    }
    if not curves:
        none = "Without epochs, or without a validation part, there are no curves to judge."
        return Section("Learning", (Paragraph(none, soft=True),))
    if all(fitted_at_once(h) for h in curves.values()):
        at_once = "The head is fitted at once, without epochs, so there are no curves to judge."
        return Section("Learning", (Paragraph(at_once, soft=True),))
    verdicts = {n: judge_fold(h, most_epochs) for n, h in curves.items()}
    highest, epochs = loss_axis(list(curves.values())), max(int(h["epoch"].iloc[-1]) for h in curves.values())
    pictures = tuple(
        Picture(
            learning_curve(history, highest, epochs),
            f"Losses of fold {n}: {verdicts[n].name}",
            _fold_name(n, counts),
            verdicts[n].said,
            f"learning-fold-{n}",
            tag=_tag(verdicts[n].name),
        )
        for n, history in curves.items()
    )
    legend = Paragraph(
        "; the dot is the epoch that was kept, at the lowest mean validation loss of several epochs. Each model of a "
        "fold has its own two lines.",
        soft=True,
        key=(("c0", "training"), ("c1", "validation")),
    )
    return Section("Learning", (*_overall(list(verdicts.values())), legend, Figures(pictures, small=True)))


def learning_curve(history: pd.DataFrame, highest: float, epochs: int) -> Chart:
    """The curves of all models of a fold."""
    chart = Chart((0, epochs), (0, highest), (300, 200), ("epoch", "loss"), ticks=4, whole_x=True)
    for number, own in enumerate(by_member(history)):
        names = ("training", "validation") if number == 0 else ("", "")
        kept = own.iloc[kept_epoch(own)]
        chart.guide([kept["epoch"]] * 2, [0, highest])
        chart.line(own["epoch"], own["train_loss"], "c0", names[0])
        chart.line(own["epoch"], own["val_loss"], "c1", names[1])
        chart.dot(kept["epoch"], kept["val_loss"], "c1", said=f"kept: epoch {kept['epoch']:.0f}")
    return chart


def loss_axis(histories: Sequence[pd.DataFrame]) -> float:
    """One upper end for all folds: their highest loss, but no more than three times their highest start."""
    both = [history[["train_loss", "val_loss"]].to_numpy(np.float64) for history in histories]
    start = max(float(losses[0].max()) for losses in both)
    return max(min(max(float(losses.max()) for losses in both), _HIGHEST_LOSS * start) * 1.04, 1e-6)


def _overall(verdicts: Sequence[Verdict]) -> tuple[Part, ...]:
    names = [verdict.name for verdict in verdicts]
    each = sorted(set(names), key=lambda name: (-names.count(name), list(REMEDIES).index(name)))
    points = tuple((_tag(name), f"{names.count(name)} of {len(names)}. {REMEDIES[name]}") for name in each)
    return parts.Verdict("Overall:", _tag(judge_all(verdicts))), Points(points)


def _tag(name: Name) -> Tag:
    return Tag(name, "good" if name == "fine" else "failed" if name in _BAD else "")


def _fold_name(number: int, counts: Mapping[str, Any]) -> str:
    folds = counts["folds"]
    repeat = f"repeat {number // folds + 1}, " if counts["repeats"] > 1 else ""
    return f"{repeat}fold {number % folds + 1}"
