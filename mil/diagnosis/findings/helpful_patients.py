"""Finding: which training patients help on held-out slides, and which do harm."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mil.diagnosis.finding import Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.influence import influences
from mil.diagnosis.slide_pictures import slide_pictures
from mil.metrics.bootstrap import draw_weights, interval
from mil.pages.chart import Chart

KEY, TITLE, SHARE = "influence", "Which patients help or harm", 10
Floats = NDArray[np.float64]
_SHOWN = 8
_HARM = 0.01  # of the loss, below which a patient is not worth a word


def find(inputs: Inputs) -> Finding:
    """Needs nothing but the cohort. With more than two classes, each against the rest, summed."""
    patients, changes, losses = _summed(inputs)
    weights = draw_weights(inputs.cohort.patient_ids.tolist(), inputs.config.bootstrap, inputs.seed)
    harm = _mean_harm(changes, weights[:1])[:, 0] / np.nanmean(losses)  # part of the loss that the patient adds
    order = np.argsort(-np.nan_to_num(harm, nan=-np.inf), kind="stable")
    worst, best = order[:_SHOWN], order[::-1][:_SHOWN]
    drawn = {i: _mean_harm(changes[[i]], weights)[0] / np.nanmean(losses) for i in (*worst.tolist(), *best.tolist())}
    bounds: dict[int, Figure] = {i: dict(interval(of)) for i, of in drawn.items()}
    surely = norm.isf(0.025 / len(harm))  # the worst of many is high by chance (Bonferroni)
    harmful = [i for i in worst.tolist() if harm[i] >= max(_HARM, surely * np.nanstd(drawn[i][1:]))]
    first = (harmful or worst.tolist())[0]
    verdict, remedy = _judge(patients[first], harm[first], len(harmful))
    slides = [j for i in worst for j in np.flatnonzero(inputs.cohort.patient_ids == patients[i]).tolist()]
    return Finding(
        KEY,
        TITLE,
        "look" if harmful else "fine",
        verdict,
        remedy,
        {
            "most harmful: part of the loss": bounds[int(worst[0])],
            "most helpful: part of the loss": bounds[int(best[0])],
        },
        [_chart(harm[order]), *slide_pictures(inputs, "Slides of the most harmful patients", slides)],
        [_table(inputs, title, patients[of], [bounds[i] for i in of.tolist()])
         for title, of in (("Most harmful", worst), ("Most helpful", best))],
        {"harm": dict(zip(patients.tolist(), harm.tolist(), strict=True))},
    )  # fmt: skip


def _summed(inputs: Inputs) -> tuple[NDArray[np.str_], Floats, Floats]:
    """Names (P,), and changes (P, S) and losses (S,) of `influences`, over the classes that are told."""
    cohort, classes, parts = inputs.cohort, inputs.told_classes, parts_of(inputs.folds)
    patients = np.unique(cohort.patient_ids)
    changes, losses = np.zeros((len(patients), len(inputs.means))), np.zeros(len(inputs.means))
    for number, c in enumerate(classes):

        def progress(share: float, number: int = number) -> None:
            inputs.progress((number + share) / len(classes))

        changed, lost = influences(inputs.means, cohort.labels == c, cohort.patient_ids, parts, progress)
        changes, losses = changes + changed, losses + lost
    return patients, changes, losses


def _judge(name: str, share: float, harmful: int) -> tuple[str, str]:
    """Verdict and remedy. The patient that does most harm, how much, and how many do it surely."""
    if not harmful:
        return f"No patient does notable harm; {name} does most, {share:.1%} of the loss.", "Nothing to do."
    return (
        f"{harmful} of the patients shown do harm: without {name} the loss on held-out slides is {share:.1%} lower.",
        "Look at their slides: wrong label, wrong stain, artefacts, or a rare kind of which more are needed. Leave "
        "one out only for a reason that you can see; a slide that is only hard belongs in the data.",
    )


def _mean_harm(changes: Floats, weights: Floats) -> Floats:
    """changes (P, S), weights (R, S) of judged slides -> (P, R): how much higher the mean loss is with the patient."""
    there = np.isfinite(changes)
    total = there.astype(float) @ weights.T
    summed = np.where(there, changes, 0) @ weights.T
    return np.asarray(-np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0))


def _table(inputs: Inputs, title: str, patients: NDArray[np.str_], bounds: list[Figure]) -> Details:
    cohort, rows = inputs.cohort, []
    for patient, of in zip(patients.tolist(), bounds, strict=True):
        own = cohort.patient_ids == patient
        labels = sorted({cohort.classes[label] for label in cohort.labels[own]})
        change = f"{of['value'] or 0:+.2%}", f"{of['low'] or 0:+.2%} to {of['high'] or 0:+.2%}"
        rows.append((patient, ", ".join(cohort.slide_ids[own]), ", ".join(labels), *change))
    return Details(title, ("patient", "slides", "label", "adds to the loss", "95 % interval"), tuple(rows))


def _chart(harm: Floats) -> Picture:
    harm = harm[np.isfinite(harm)] * 100
    most = float(max(np.abs(harm).max(), 1e-6)) * 1.05
    chart = Chart((0, len(harm)), (-most, most), (420, 300), ("patients by harm", "part of the loss, %"), whole_x=True)
    chart.guide((0, len(harm)), (0, 0))
    chart.line(np.arange(len(harm)) + 0.5, harm, "c0")
    caption = "Each patient left out once of the linear probe on averaged features."
    return Picture("What each training patient adds to the held-out loss", caption, chart.svg("Harm"))
