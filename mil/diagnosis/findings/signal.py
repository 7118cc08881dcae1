"""Finding: can anything be learned from these features, and would more patients help?"""

import numpy as np
import torch
from numpy.typing import NDArray

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of, within
from mil.diagnosis.numbers.learning_curve import LearningCurve, learning_curve
from mil.diagnosis.numbers.permutation import macro_aurocs, permutation_p, shuffled_labels
from mil.diagnosis.numbers.probe import figure_of
from mil.diagnosis.numbers.ridge import kernel
from mil.metrics.bootstrap import Bootstrap
from mil.pages.chart import Chart
from mil.run.tables import read_predictions

KEY, TITLE, SHARE = "signal", "Signal", 20
_DRAWS = 5  # of patches, behind spread and extremes
Floats = NDArray[np.float64]


def find(inputs: Inputs) -> Finding:
    """AUROC of the probe, its permutation p, the learning curve, and the floor of random weights."""
    cohort = inputs.cohort
    p_mean, p_any, best, patches = _signal_p(inputs)
    classes = inputs.told_classes
    curve = learning_curve(cohort, inputs.folds, inputs.means, classes, inputs.seed, inputs.progress)
    auroc = inputs.probe.auroc
    numbers: dict[str, Figure] = {
        "AUROC of averaged features": {**auroc, "p": p_mean},
        "AUROC of the best of average, spread and extremes": {"value": best, "p": p_any},
        "patches of each slide behind spread and extremes": {"value": float(patches)},
    }
    if curve:
        numbers["expected AUROC with twice the patients"] = curve.doubled
    floor = _floor(inputs)
    numbers |= floor
    of_run = _of_run(inputs)
    if of_run:
        numbers["AUROC of the run"] = of_run
    given_run = inputs.sources.run is not None
    severity, verdict, remedy = _judge((p_mean, p_any), auroc, (of_run, given_run), curve, floor)
    pictures = [_chart(curve)] if curve else []
    evidence = {"permutations": inputs.config.permutations}
    return Finding(KEY, TITLE, severity, verdict, remedy, numbers, pictures, evidence=evidence)


def _signal_p(inputs: Inputs) -> tuple[float, float, float, int]:
    """p of the mean patch alone, p of the best of mean, spread and extremes corrected for the three (max-T), its AUROC,
    and of how many patches spread and extremes are.

    The p values are the chance of as high an AUROC with shuffled labels. Spread and extremes grow with the number of
    patches, which may go with the label, so they are of as many random patches of each slide; their AUROC is the mean
    over draws.
    """
    cohort, parts = inputs.cohort, parts_of(inputs.folds)
    labels = shuffled_labels(cohort, inputs.folds, inputs.config.permutations, inputs.seed)
    rng = np.random.default_rng(np.random.SeedSequence((inputs.seed, 12)))
    patches, enough = _as_many_of_each(cohort)
    of_enough = [tuple(np.flatnonzero(np.isin(enough, part)) for part in fold) for fold in parts]
    classes, patients = inputs.told_classes, cohort.patient_ids
    drawn = [
        [macro_aurocs(kernel(own), labels[enough], classes, patients[enough], of_enough) for own in vectors]
        for vectors in (_spread_and_extremes(cohort, enough, patches, rng) for _ in range(_DRAWS))
    ]
    of_means = macro_aurocs(kernel(inputs.means), labels, classes, patients, parts)
    highest = np.max([of_means, *np.mean(drawn, axis=0)], axis=0)
    return permutation_p(of_means), permutation_p(highest), float(highest[0]), patches


def _as_many_of_each(cohort: Cohort) -> tuple[int, NDArray[np.int64]]:
    """How many patches of each slide are compared, and the positions of the slides that have them.

    As many as the smallest slide has, but a tenth of what is usual in the class with the smaller slides: a few scraps
    of tissue are left out rather than let decide.
    """
    sizes = np.array([len(features) for features in cohort.features])
    usual = min(np.median(sizes[cohort.labels == c]) for c in np.unique(cohort.labels))
    patches = max(int(sizes.min()), int(usual) // 10)
    return patches, np.flatnonzero(sizes >= patches)


def _spread_and_extremes(
    cohort: Cohort, slides: NDArray[np.int64], patches: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(S, D) standard deviations and (S, 2D) smallest and largest values of so many random patches of S slides: what a
    few patches change first."""
    spread, extremes = [], []
    for i in slides:
        features = cohort.features[i]
        slide = features[torch.from_numpy(rng.choice(len(features), patches, replace=False))].float()
        spread.append(slide.std(0, unbiased=False).double().numpy())
        extremes.append(torch.cat(slide.aminmax(dim=0)).double().numpy())
    return np.stack(spread), np.stack(extremes)


def _of_run(inputs: Inputs) -> Figure | None:
    """AUROC of the run's slides, out of fold; None without a run."""
    if not inputs.has_run:
        return None
    task, config = inputs.cohort.task, inputs.config
    found: Figure = task.evaluate(read_predictions(inputs.require_run()[0]), Bootstrap(config.bootstrap, inputs.seed))[
        task.headline
    ]
    return found


def _judge(
    ps: tuple[float, float],
    auroc: Figure,
    run: tuple[Figure | None, bool],
    curve: LearningCurve | None,
    floor: dict[str, Figure],
) -> tuple[Severity, str, str]:
    """ps: of the average, and of the best of average, spread and extremes. run: its AUROC, and whether one is given."""
    value, (p_mean, p_any), (of_run, given_run) = auroc["value"] or np.nan, ps, run
    if p_any >= 0.05:
        if of_run and (of_run["low"] or 0) > 0.5:
            return (
                "look",
                f"The run finds signal ({_of(of_run)}) where average, spread and extremes of a slide's patches "
                f"show none (p = {p_any:.2f}): a few patches may carry it.",
                "Keep to heads that look for few patches, such as gated-abmil, and tile densely.",
            )
        nor = f" Nor does the run show any ({_of(of_run)})." if of_run else ""
        if of_run:
            few_patches = ""
        elif given_run:  # of another kind of target
            few_patches = "A few patches may show what these do not: see in the run's report.html whether any do. "
        else:
            few_patches = (
                "A head that looks for few patches may find what these do not show: train gated-abmil and give its "
                "--run. "
            )
        return (
            "fault",
            "No signal found: with shuffled labels the features do as well, by average, spread and extremes of a "
            f"slide's patches (AUROC {value:.2f} by average; p = {p_any:.2f} of the best).{nor}",
            f"Check first that labels and slides belong together. {few_patches}Then try another scale or encoder, or "
            "more patients.",
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
            f"There is signal in the spread or the extremes of a slide's patches (p = {p_any:.3f}), not shown in their "
            "average: a few patches may carry it.",
            "Use a head that looks for few patches, such as gated-abmil, and tile densely.",
        )
    return (
        "fine",
        f"There is signal: AUROC {value:.2f} with averaged features (p = {p_mean:.3f}).{grows}",
        "Nothing is wrong here. More patients help as far as the curve still rises.",
    )


def _of(run: Figure) -> str:
    low, high = (np.nan if run[end] is None else run[end] for end in ("low", "high"))
    return f"AUROC {run['value']:.2f}, {low:.2f}–{high:.2f}"


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
