"""What a report says of a classification: figures in words and numbers, ROC, precision, confusion, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from mil.metrics.bootstrap import Bootstrap, Floats, interval
from mil.metrics.classification import weighted_auprc, weighted_auroc
from mil.metrics.curves import (
    GRID,
    CalibrationBin,
    Scores,
    band,
    calibration_bins,
    precision_curves,
    roc_curves,
    scores_of,
)
from mil.pages.chart import COLOURS, Chart
from mil.pages.parts import (
    Card,
    Cards,
    Cell,
    Figures,
    Heading,
    Key,
    Matrix,
    Paragraph,
    Part,
    Picture,
    Section,
    Table,
    number,
)
from mil.pages.words import Figure, found_sentence
from mil.pages.words import interval as in_short
from mil.tasks.reports.figures import cards, cautions, every_figure, judged, title

FIGURES = {  # name in metrics.json: title, and what it means
    "auroc": (
        "AUROC",
        "chance that a slide of the class gets a higher probability than one without, both of any folds (pooled); 0.5 "
        "is guessing",
    ),
    "auroc_of_folds": ("AUROC, mean of folds", "that of each fold alone, whose slides one model judged, then the mean"),
    "auroc_delong": ("AUROC, DeLong", "the pooled figure, interval by DeLong's method"),
    "auprc": ("AUPRC", "mean precision over all thresholds; guessing gives the class's share of the slides"),
    "balanced_accuracy": (
        "balanced accuracy",
        "mean of the recalls of all labels; guessing gives one over their number",
    ),
    "sensitivity": ("sensitivity", "part of the slides with the class that are found"),
    "specificity": ("specificity", "part of the slides without the class that are left alone"),
    "accuracy": ("accuracy", "part of all slides that are right; a frequent label makes it high"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "mcc": ("MCC", "correlation of prediction and truth; 0 is guessing, 1 is perfect"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is perfect"),
    "ece": ("calibration error", "how far probabilities are from what comes true, on average; 0 is perfect"),
    "precision": ("precision", ""),
    "recall": ("recall", ""),
}
_HEADLINE = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
_UNIT = (0.0, 1.0)


def classification_sections(
    classes: Sequence[str],
    positive: str | None,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    bootstrap: Bootstrap,
) -> list[Section]:
    """The result in short first, then what is behind it. metrics, predictions: of metrics.json and predictions.csv."""
    place = None if positive is None else classes.index(positive)
    scores = scores_of(predictions, classes, place, bootstrap)
    return [
        Section("Result", (_headline(metrics), *_in_words(metrics, positive), every_figure(metrics, FIGURES))),
        Section("Ranking", _ranking(scores)),
        Section("Labels", (*_confusion(predictions, classes, positive), *_by_class(judged(metrics), classes))),
        Section("Probabilities", (Figures((_calibration(calibration_bins(scores), positive),)),)),
    ]


def _headline(metrics: Mapping[str, Any]) -> Cards:
    """The few numbers that matter."""
    shown = cards(judged(metrics), _HEADLINE, FIGURES)
    if "patch" in metrics:
        shown.append(Card("accuracy on copied patch labels", number(metrics["patch"]["accuracy"])))
    return Cards(tuple(shown))


def _in_words(metrics: Mapping[str, Any], positive: str | None) -> list[Paragraph]:
    """What the numbers say, and what to keep in mind."""
    found = [found_sentence(metrics["found"])] if "found" in metrics else []
    auroc = _auroc_said(judged(metrics)["auroc"], positive)
    return [Paragraph(line) for line in [*found, *auroc, *cautions(metrics)]]


def _auroc_said(auroc: Figure, positive: str | None) -> list[str]:
    if auroc["value"] is None:
        return ["The test slides hold a single label, so nothing can be said about telling labels apart."]
    of = "one label against the rest" if positive is None else f"“{positive}” against the other label"
    lines = [
        f"Take one slide of each kind at random ({of}): the model gives the right one the higher probability in "
        f"{100 * auroc['value']:.0f} of 100 such pairs. Every slide was judged by models that saw neither it nor any "
        "other slide of its patient."
    ]
    low, high = auroc["low"], auroc["high"]
    if low is None or low == high:
        return lines
    between = f"With 95 % confidence it is between {100 * low:.0f} and {100 * high:.0f}. "
    if low <= 0.5 <= high:
        return [*lines, between + "That holds 50, which is guessing: this run does not show that the model works."]
    if high < 0.5:
        return [*lines, between + "That is worse than guessing: look for labels or ids that are mixed up."]
    return [*lines, between + "Guessing would be 50."]


def _ranking(scores: Scores) -> tuple[Part, ...]:
    note = (
        "All out-of-fold predictions together; bands hold 95 % of the bootstrap draws over patients. Folds have models "
        "of their own, whose scores may differ in scale, so pooled curves and areas can be a little worse than the "
        "folds' own, whose mean stands in the table of figures."
    )
    return Figures((_roc(scores), _precision_recall(scores))), Paragraph(note, soft=True)


def _roc(scores: Scores) -> Picture:
    chart = Chart(_UNIT, _UNIT, labels=("1 − specificity", "sensitivity"))
    chart.guide(_UNIT, _UNIT)
    for c in scores.shown:
        own, truth = scores.probabilities[:, c], scores.labels == c
        auroc = interval(weighted_auroc(own, truth, scores.weights))
        _curve(chart, roc_curves(own, truth, scores.weights), _colour(scores, c), _named(scores, c, "AUROC", auroc))
    said = "ROC curve of the out-of-fold predictions with its 95 % band"
    key, names = _legend(scores)
    return Picture(chart, said, "ROC", f"{names} Dotted: guessing.", "roc", key)


def _precision_recall(scores: Scores) -> Picture:
    chart = Chart(_UNIT, _UNIT, labels=("recall (sensitivity)", "precision"))
    for c in scores.shown:
        own, truth = scores.probabilities[:, c], scores.labels == c
        share = float(truth.mean())
        chart.guide(_UNIT, (share, share))
        auprc = interval(weighted_auprc(own, truth, scores.weights))
        curves = precision_curves(own, truth, scores.weights)
        _curve(chart, curves, _colour(scores, c), _named(scores, c, "AUPRC", auprc))
    said = "Precision by recall of the out-of-fold predictions with its 95 % band"
    key, names = _legend(scores)
    caption = f"{names} Dotted: guessing, the label's share of the slides."
    return Picture(chart, said, "Precision and recall", caption, "precision-recall", key)


def _curve(chart: Chart, curves: Floats, kind: str, named: str) -> None:
    """curves (R, 201): the first is the data's, the others make the band."""
    drawn = band(curves)
    if drawn:
        chart.band(GRID, *drawn, kind)
    chart.line(GRID, curves[0], kind, named)


def _colour(scores: Scores, c: int) -> str:
    return "c0" if scores.positive is not None else f"c{c % COLOURS}"


def _named(scores: Scores, c: int, name: str, figure: Figure) -> str:
    return f"{scores.classes[c]}: {name} {in_short(figure)}"


def _legend(scores: Scores) -> tuple[Key, str]:
    """Colours, and the start of a caption."""
    if scores.positive is not None:
        return (), f"Positive: {scores.classes[scores.positive]}."
    return tuple((_colour(scores, c), name) for c, name in enumerate(scores.classes)), "."


def _confusion(slides: pd.DataFrame, classes: Sequence[str], positive: str | None) -> tuple[Part, ...]:
    counts = confusion_matrix(slides["label"], slides["prediction"], labels=classes)  # (C, C), truth by prediction
    share: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    threshold = "A slide is called positive where its probability reaches the share of positive slides in training."
    decided = "The most probable label is predicted." if positive is None else threshold
    matrix = Matrix(tuple(classes), tuple(map(tuple, counts.tolist())), tuple(map(tuple, share.tolist())))
    note = Paragraph(f"Slides, and their part of the row. {decided}", soft=True)
    return Heading("Confusion matrix"), matrix, note


def _by_class(figures: Mapping[str, Any], classes: Sequence[str]) -> tuple[Part, ...]:
    """Every figure that is given by label."""
    names = [name for name, value in figures.items() if isinstance(value, dict) and set(value) == set(classes)]
    if not names:
        return ()
    rows: list[tuple[Cell, ...]] = [(c, *(number(figures[name][c]) for name in names)) for c in classes]
    head = ("", *(title(name.removesuffix("_by_class"), FIGURES) for name in names))
    return Heading("By label"), Table(head, tuple(rows))


def _calibration(bins: Sequence[CalibrationBin], positive: str | None) -> Picture:
    of = positive or "the predicted label"
    chart = Chart(_UNIT, _UNIT, labels=(f"probability of {of}, as predicted", "part that came true"))
    chart.guide(_UNIT, _UNIT)
    chart.line([b.said for b in bins], [b.true for b in bins], "c0 thin")
    most = max(b.rows for b in bins)
    for b in bins:
        if np.isfinite(b.low):
            chart.line([b.said, b.said], [b.low, b.high], "c0 thin")
        said = f"predicted {b.said:.2f}, came true {b.true:.2f} ({b.low:.2f}–{b.high:.2f}), {b.rows} slides"
        chart.dot(b.said, b.true, "c0", 3 + 6 * float(np.sqrt(b.rows / most)), said)
    caption = (
        f"On the dotted line, of ten slides with probability 0.8 eight are {'right' if positive is None else positive}."
        " Below the line the probabilities are too high, above it too low. A dot grows with its number of slides; its "
        "vertical line is the 95 % interval."
    )
    said = "Calibration: probability as predicted against the part that came true"
    return Picture(chart, said, "Calibration", caption, "calibration")
