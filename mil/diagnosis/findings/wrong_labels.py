"""Finding: slides whose label may be wrong, from out-of-fold probabilities of the run, or of the linear probe."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Details, Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.suspects import cleaned_probabilities, confident_learning, wrong_share
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.pages.chart import Chart
from mil.run.tables import read_predictions

KEY, TITLE, SHARE = "wrong-labels", "Labels that may be wrong", 5
_SHOWN = 20
_LEAST, _APART = 0.05, 1.25  # lower ends of share and distance of classes from which it is an alarm


def find(inputs: Inputs) -> Finding:
    """The order is that of the run or of the linear probe, whichever agrees better with the labels (AUROC)."""
    cohort, config = inputs.cohort, inputs.config
    plain, cleaned = cleaned_probabilities(inputs.means, cohort.labels, cohort.patient_ids, parts_of(inputs.folds))
    judged = {"linear probe": (plain, cleaned)}
    if inputs.sources.run is not None:
        of_run = _of_run(inputs, read_predictions(inputs.require_run()[0]))
        judged["run"] = (of_run, of_run)
    figures: dict[str, Figure] = {}
    alarms = []
    for name, (ranked, second) in judged.items():
        slides = np.flatnonzero(np.isfinite(ranked).all(axis=1))
        labels, patients = cohort.labels[slides], cohort.patient_ids[slides]
        weights = draw_weights(patients.tolist(), config.bootstrap, inputs.seed)
        counted = confident_learning(ranked[slides], labels).counted
        figures[f"slides that look like another class, {name}"] = dict(
            interval(weights @ counted / weights.sum(axis=1))
        )
        if cohort.positive is not None:
            chance = np.clip(second[slides, cohort.positive], 1e-6, 1 - 1e-6)
            truth = labels == cohort.positive
            share, apart = wrong_share(np.log(chance / (1 - chance)), truth, patients, config.bootstrap, inputs.seed)
            figures[f"estimated share of wrong labels, {name}"] = share
            figures[f"distance of the classes in standard deviations, {name}"] = apart
            if (share["low"] or 0) > _LEAST and (apart["low"] or 0) > _APART:
                alarms.append((name, share))
    by = max(judged, key=lambda name: _agreement(cohort, judged[name][0]))
    slides = np.flatnonzero(np.isfinite(judged[by][0]).all(axis=1))
    labels, patients = cohort.labels[slides], cohort.patient_ids[slides]
    suspects = confident_learning(judged[by][0][slides], labels)
    rows = tuple(
        (
            str(cohort.slide_ids[slides[i]]),
            str(patients[i]),
            cohort.classes[labels[i]],
            cohort.classes[suspects.other[i]],
            f"{suspects.margins[i]:+.2f}",
        )
        for i in suspects.order[:_SHOWN].tolist()
    )
    details = [Details("Most suspicious first", ("slide", "patient", "label", "looks like", "margin"), rows)]
    severity: Severity = "look" if alarms else "fine"
    if alarms:
        name, share = alarms[-1]
        verdict = (
            f"About {share['value'] or 0:.0%} ({share['low']:.0%}–{share['high']:.0%}) of the labels look wrong: their "
            f"slides lie where the other class does ({name})."
        )
        remedy = (
            "Have the slides of the list looked at again, blinded, from the top; correct or leave out wrong ones. "
            "After that --loss generalised-cross-entropy bears what is left."
        )
    else:
        count = int(suspects.counted.sum())
        verdict = f"No sign of many wrong labels; {count} slide(s) look like another class."
        remedy = "If labels come from reports by hand, look at the top of the list all the same."
    return Finding(
        KEY,
        TITLE,
        severity,
        verdict,
        remedy,
        figures,
        [_chart(suspects.margins[suspects.order])],
        details,
        {"order": cohort.slide_ids[slides[suspects.order]].tolist(), "by": by},
    )


def _of_run(inputs: Inputs, table: pd.DataFrame) -> NDArray[np.float64]:
    """Probabilities (S, C), means over repeats; NaN for slides that no fold tested."""
    columns = [f"prob_{name}" for name in inputs.cohort.classes]
    means = table.assign(slide_id=table["slide_id"].astype(str)).groupby("slide_id")[columns].mean()
    return means.reindex(inputs.cohort.slide_ids.tolist()).to_numpy(np.float64)


def _agreement(cohort: Cohort, probabilities: NDArray[np.float64]) -> float:
    there = np.isfinite(probabilities).all(axis=1)
    weights = np.ones((1, int(there.sum())))
    return float(macro_auroc(probabilities[there], cohort.labels[there], weights, cohort.positive)[0])


def _chart(margins: NDArray[np.float64]) -> Picture:
    ends = (0.0, float(len(margins)))
    chart = Chart(ends, (-1, 1), (420, 300), ("slides, most suspicious first", "margin of the label"), whole_x=True)
    chart.guide(ends, (0, 0))
    chart.line(np.arange(len(margins)) + 0.5, margins, "c0")
    caption = (
        "Probability of the slide's own label less that of the best other class, out of fold. "
        "Below 0 the model disagrees."
    )
    return Picture("Agreement of model and label", caption, chart.svg("Margin of each slide's label"))
