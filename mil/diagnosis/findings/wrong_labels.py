"""Finding: slides that lie where another class does, from out-of-fold probabilities of the run, or of the linear probe.

Their label may be wrong, or right on a slide that is atypical, as one whose tumour is small: features cannot tell these
apart, a look at the slide can.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.suspects import Suspects, cleaned_probabilities, confident_learning, wrong_share
from mil.diagnosis.slide_pictures import slide_pictures
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.pages.chart import Chart
from mil.run.tables import read_predictions

KEY, TITLE, SHARE = "wrong-labels", "Labels that may be wrong, or slides that are atypical", 5
_SHOWN = 20
_ELSEWHERE = "share of slides that lie where the other class does"
_DISTANCE = "distance of the classes in standard deviations"
_LEAST, _APART = 0.05, 1.25  # lower ends of share and distance of classes from which it is an alarm


def find(inputs: Inputs) -> Finding:
    """The order is that of the run or of the linear probe, whichever agrees better with the labels (AUROC)."""
    cohort = inputs.cohort
    judged = _judged(inputs)
    numbers: dict[str, Figure] = {}
    alarms, apart = [], False
    for name, model in judged.items():
        own = _figures(inputs, name, model)
        numbers |= own
        of_model = _lower(own, _DISTANCE, name) > _APART
        apart = apart or of_model
        if of_model and _lower(own, _ELSEWHERE, name) > _LEAST:
            alarms.append((name, own[f"{_ELSEWHERE}, {name}"]))
    by = max(judged, key=lambda name: _agreement(cohort, judged[name].ranked))
    slides = judged[by].slides
    suspects = confident_learning(judged[by].ranked[slides], cohort.labels[slides])
    verdict, remedy = _verdict(inputs, alarms, apart, slides[suspects.counted].tolist())
    ranked = slides[suspects.order]
    return Finding(
        KEY,
        TITLE,
        "look" if alarms else "fine",
        verdict,
        remedy,
        numbers,
        [_chart(suspects.margins[suspects.order]), *slide_pictures(inputs, "Most suspicious slides", ranked.tolist())],
        [_table(cohort, slides, suspects)],
        {"order": cohort.slide_ids[ranked].tolist(), "by": by},
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
    if inputs.has_run:
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
        found[f"{_ELSEWHERE}, {name}"] = share
        found[f"{_DISTANCE}, {name}"] = apart
    return found


def _lower(figures: dict[str, Figure], what: str, name: str) -> float:
    """Lower end of a figure, 0 where it is not defined."""
    return figures.get(f"{what}, {name}", {"low": None})["low"] or 0.0


def _verdict(inputs: Inputs, alarms: list[tuple[str, Figure]], apart: bool, alike: list[int]) -> tuple[str, str]:
    """And the remedy. alarms: who says so, and the share of slides; apart: whether the classes are far enough apart to
    see it; alike: positions of slides that look like another class."""
    cohort = inputs.cohort
    labels = Counter(cohort.classes[label] for label in cohort.labels[alike].tolist())
    counts = ", ".join(f"{count} labelled {name}" for name, count in labels.most_common())
    said = f"Slides that look like another class: {counts or 'none'}"
    if alarms:
        name, share = alarms[-1]
        return (
            f"About {share['value'] or 0:.0%} ({share['low']:.0%}–{share['high']:.0%}) of the slides lie where the "
            f"other class does ({name}): their labels are wrong, or the slides are atypical. {said}.",
            "Have the slides of the list looked at, blinded, from the top. Correct a label where the slide shows that "
            "it is wrong. Keep a slide that is only atypical, as one that shows little of its label: its like will "
            "come again. --loss generalised-cross-entropy bears wrong labels.",
        )
    if cohort.positive is not None and not apart:
        return (
            f"The classes lie too close together to tell whether labels are wrong. {said}.",
            "A wrong label and a weak signal look alike here. If labels come from reports by hand, look at the top of "
            "the list.",
        )
    return (
        f"No sign of many wrong labels. {said}.",
        "If labels come from reports by hand, look at the top of the list all the same.",
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
