"""Finding: can anything be learned from these features, and would more patients help?"""

import numpy as np
from numpy.typing import NDArray

from mil.diagnosis.finding import Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of, within
from mil.diagnosis.numbers.learning_curve import LearningCurve, learning_curve
from mil.diagnosis.numbers.permutation import macro_aurocs, permutation_p, shuffled_labels
from mil.diagnosis.numbers.probe import figure_of
from mil.diagnosis.numbers.ridge import kernel
from mil.pages.chart import Chart

KEY, TITLE, SHARE = "signal", "Signal", 20
Floats = NDArray[np.float64]


def find(inputs: Inputs) -> Finding:
    """AUROC of the probe, its permutation p, the learning curve, and the floor of random weights."""
    cohort = inputs.cohort
    p_mean, p_any, best = _signal_p(inputs)
    classes = inputs.told_classes
    curve = learning_curve(cohort, inputs.folds, inputs.means, classes, inputs.seed, inputs.progress)
    auroc = inputs.probe.auroc
    numbers: dict[str, Figure] = {
        "AUROC of averaged features": {**auroc, "p": p_mean},
        "AUROC of the best of average, spread and extremes": {"value": best, "p": p_any},
    }
    if curve:
        numbers["expected AUROC with twice the patients"] = curve.doubled
    floor = _floor(inputs)
    numbers |= floor
    severity, verdict, remedy = _judge(p_mean, p_any, auroc, curve, floor)
    pictures = [_chart(curve)] if curve else []
    evidence = {"permutations": inputs.config.permutations}
    return Finding(KEY, TITLE, severity, verdict, remedy, numbers, pictures, evidence=evidence)


def _signal_p(inputs: Inputs) -> tuple[float, float, float]:
    """p of the mean patch alone, p of the best of mean, spread and extremes corrected for the three (max-T), its AUROC.

    The p values are the chance of as high an AUROC with shuffled labels.
    """
    cohort, parts = inputs.cohort, parts_of(inputs.folds)
    labels = shuffled_labels(cohort, inputs.folds, inputs.config.permutations, inputs.seed)
    vectors = [inputs.means, *_spread_and_extremes(inputs)]
    aurocs = [macro_aurocs(kernel(own), labels, inputs.told_classes, cohort.patient_ids, parts) for own in vectors]
    highest = np.max(aurocs, axis=0)
    return permutation_p(aurocs[0]), permutation_p(highest), float(highest[0])


def _spread_and_extremes(inputs: Inputs) -> tuple[Floats, Floats]:
    """(S, D) standard deviations and (S, 2D) smallest and largest patch values: what a few patches change first."""
    spread, extremes = [], []
    for features in inputs.cohort.features:
        slide = features.float()
        spread.append(slide.std(0, unbiased=False).double().numpy())
        low, high = slide.aminmax(dim=0)
        extremes.append(np.concatenate([low.numpy(), high.numpy()]).astype(np.float64))
    return np.stack(spread), np.stack(extremes)


def _judge(
    p_mean: float, p_any: float, auroc: Figure, curve: LearningCurve | None, floor: dict[str, Figure]
) -> tuple[Severity, str, str]:
    value = auroc["value"] or np.nan
    if min(p_mean, p_any) >= 0.05:
        return (
            "fault",
            f"No signal found: with shuffled labels the features do as well (AUROC {value:.2f}, p = {p_mean:.2f}).",
            "Check first that labels and slides belong together. Then try another scale or encoder, or more patients; "
            "no head can learn what the features do not show.",
        )
    grows = ""
    if curve and curve.doubled["value"] is not None and curve.doubled["low"] is not None:
        low, high = curve.doubled["low"], curve.doubled["high"] or 1.0
        grows = f" With twice the patients expect {curve.doubled['value']:.2f} ({low:.2f}–{high:.2f})."
    if floor and (floor["gain over random weights"]["low"] or 0) <= 0:
        return (
            "look",
            f"There is signal (AUROC {value:.2f}), but not shown to be more than random weights find.{grows}",
            "The pretrained encoder adds nothing that is shown: colour and texture may carry the label. Look at the "
            "finding on shortcuts, and try an encoder trained on pathology.",
        )
    if p_mean >= 0.05:
        return (
            "look",
            f"There is signal in a few patches (p = {p_any:.3f}), but not in the average of a slide.",
            "Use a head that looks for few patches, such as gated-abmil, and tile densely.",
        )
    return (
        "fine",
        f"There is signal: AUROC {value:.2f} with averaged features (p = {p_mean:.3f}).{grows}",
        "Nothing is wrong here. More patients help as far as the curve still rises.",
    )


def _floor(inputs: Inputs) -> dict[str, Figure]:
    """AUROC with features of random weights and the gain over it, on the slides that both have."""
    cohort, folder = inputs.cohort, inputs.sources.random_features
    if folder is None:
        return {}
    other = inputs.other_features(folder)
    at = {name: i for i, name in enumerate(other.slide_ids)}
    shared = np.array([name in at for name in cohort.slide_ids])
    means = np.zeros((len(shared), other.features[0].shape[1]))
    for i in np.flatnonzero(shared):
        means[i] = other.features[at[cohort.slide_ids[i]]].double().mean(0).numpy()
    folds = [within(fold, shared) for fold in inputs.folds]
    compared = inputs.compare(inputs.probe_on(means, folds), inputs.probe_on(inputs.means, folds))
    return {
        "AUROC with random weights": compared.first.auroc,
        "gain over random weights": figure_of(compared.gain),
    }


def _chart(curve: LearningCurve) -> Picture:
    top = 2 * int(curve.patients[-1])
    chart = Chart((0, top), (0.3, 1), (420, 300), ("patients in training", "AUROC"), whole_x=True)
    chart.guide((0, top), (0.5, 0.5))
    chart.guide((curve.patients[-1],) * 2, (0.3, 1))
    chart.band(curve.fitted_n, curve.fitted[1], curve.fitted[2], "c0")
    chart.line(curve.fitted_n, curve.fitted[0], "c0")
    for n, auroc in zip(curve.patients, curve.auroc, strict=True):
        if auroc["value"] is not None:
            said = f"{n} patients: {auroc['value']:.3f} ({auroc['low']:.3f}–{auroc['high']:.3f})"
            chart.dot(float(n), auroc["value"], "c0", 4, said)
    caption = (
        "Linear probe trained on part of the patients, with the fitted curve and its 95 % band; the dotted upright "
        "line is where you stand, its right the expectation up to twice the patients."
    )
    return Picture("Learning curve over patients", caption, chart.svg("AUROC by number of patients"))
