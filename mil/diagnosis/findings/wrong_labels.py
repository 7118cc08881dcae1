"""Finding: slides whose label may be wrong, from out-of-fold probabilities of the run, or of the linear probe."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.suspects import Suspects, cleaned_probabilities, confident_learning, wrong_share
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.pages.chart import Chart
from mil.run.tables import read_predictions

KEY, TITLE, SHARE = "wrong-labels", "Labels that may be wrong", 5
_SHOWN = 20
_LEAST, _APART = 0.05, 1.25  # lower ends of share and distance of classes from which it is an alarm


def find(inputs: Inputs) -> Finding:
    """The order is that of the run or of the linear probe, whichever agrees better with the labels (AUROC)."""
    cohort = inputs.cohort
    judged = _judged(inputs)
    numbers: dict[str, Figure] = {}
    alarms = []
    for name, model in judged.items():
        own = _figures(inputs, name, model)
        numbers |= own
        if _alarming(own, name):
            alarms.append((name, own[f"estimated share of wrong labels, {name}"]))
    by = max(judged, key=lambda name: _agreement(cohort, judged[name].ranked))
    slides = judged[by].slides
    suspects = confident_learning(judged[by].ranked[slides], cohort.labels[slides])
    verdict, remedy = _verdict(alarms, int(suspects.counted.sum()))
    return Finding(
        KEY,
        TITLE,
        "look" if alarms else "fine",
        verdict,
        remedy,
        numbers,
        [_chart(suspects.margins[suspects.order])],
        [_table(cohort, slides, suspects)],
        {"order": cohort.slide_ids[slides[suspects.order]].tolist(), "by": by},
    )


@dataclass(frozen=True)
class _Judge:
    """Probabilities (S, C) out of fold, NaN where a slide was not tested: by which slides are ranked, and by which
    the share of wrong labels is estimated."""

    ranked: NDArray[np.float64]
    second: NDArray[np.float64]

    @property
    def slides(self) -> NDArray[np.int64]:
        """Positions of those that were tested."""
        return np.flatnonzero(np.isfinite(self.ranked).all(axis=1))


def _judged(inputs: Inputs) -> dict[str, _Judge]:
    cohort = inputs.cohort
    plain, cleaned = cleaned_probabilities(inputs.means, cohort.labels, cohort.patient_ids, parts_of(inputs.folds))
    judged = {"linear probe": _Judge(plain, cleaned)}
    if inputs.sources.run is not None:
        of_run = _of_run(inputs, read_predictions(inputs.require_run()[0]))
        judged["run"] = _Judge(of_run, of_run)
    return judged


def _figures(inputs: Inputs, name: str, model: _Judge) -> dict[str, Figure]:
    cohort, draws, slides = inputs.cohort, inputs.config.bootstrap, model.slides
    labels, patients = cohort.labels[slides], cohort.patient_ids[slides]
    weights = draw_weights(patients.tolist(), draws, inputs.seed)
    counted = confident_learning(model.ranked[slides], labels).counted
    found: dict[str, Figure] = {
        f"slides that look like another class, {name}": dict(interval(weights @ counted / weights.sum(axis=1)))
    }
    if cohort.positive is not None:
        chance = np.clip(model.second[slides, cohort.positive], 1e-6, 1 - 1e-6)
        truth = labels == cohort.positive
        share, apart = wrong_share(np.log(chance / (1 - chance)), truth, patients, draws, inputs.seed)
        found[f"estimated share of wrong labels, {name}"] = share
        found[f"distance of the classes in standard deviations, {name}"] = apart
    return found


def _alarming(figures: dict[str, Figure], name: str) -> bool:
    """Whether the share is surely above what is usual, and the classes lie so far apart that it says something."""
    share = figures.get(f"estimated share of wrong labels, {name}", {"low": None})
    apart = figures.get(f"distance of the classes in standard deviations, {name}", {"low": None})
    return (share["low"] or 0) > _LEAST and (apart["low"] or 0) > _APART


def _verdict(alarms: list[tuple[str, Figure]], counted: int) -> tuple[str, str]:
    """And the remedy. alarms: who says so, and the share of wrong labels."""
    if not alarms:
        return (
            f"No sign of many wrong labels; {counted} slide(s) look like another class.",
            "If labels come from reports by hand, look at the top of the list all the same.",
        )
    name, share = alarms[-1]
    return (
        f"About {share['value'] or 0:.0%} ({share['low']:.0%}–{share['high']:.0%}) of the labels look wrong: their "
        f"slides lie where the other class does ({name}).",
        "Have the slides of the list looked at again, blinded, from the top; correct or leave out wrong ones. "
        "After that --loss generalised-cross-entropy bears what is left.",
    )


def _table(cohort: Cohort, slides: NDArray[np.int64], suspects: Suspects) -> Details:
    rows = tuple(
        (
            str(cohort.slide_ids[slides[i]]),
            str(cohort.patient_ids[slides[i]]),
            cohort.classes[cohort.labels[slides[i]]],
            cohort.classes[suspects.other[i]],
            f"{suspects.margins[i]:+.2f}",
        )
        for i in suspects.order[:_SHOWN].tolist()
    )
    return Details("Most suspicious first", ("slide", "patient", "label", "looks like", "margin"), rows)


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
