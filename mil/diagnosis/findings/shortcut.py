"""Finding: is the label told by where and how a slide was made, instead of by its tissue?

Each covariate is put through the same nested probe as the features. Its p comes from labels shuffled by patient and is
corrected for the number of covariates tried (Holm 1979). A site that goes with the label is only harmful if the
features show the site; both are measured, and so is what is left when whole sites are held out (Howard et al. 2021).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.covariates import covariates
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.permutation import holm, macro_aurocs, permutation_p, shuffled_labels
from mil.diagnosis.numbers.probe import figure_of
from mil.diagnosis.numbers.ridge import kernel, out_of_fold
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.classification import macro_auroc
from mil.metrics.difference import Difference
from mil.pages.chart import Chart
from tiling.jobs.errors import RequestError

KEY, TITLE, SHARE = "shortcut", "Shortcuts", 20
Floats = NDArray[np.float64]
_SURE = 0.01  # corrected p at which a covariate is said to tell the label
_STRONG = 0.65  # AUROC below which it is not worth a word
_LOSS = 0.05  # of AUROC on sites never seen that is worth a word, and surely as much a fault
_SHOWN = 5


@dataclass(frozen=True)
class Told:
    """How well one covariate tells the label."""

    name: str
    technical: bool
    auroc: Figure
    p: float  # corrected for the number of covariates

    @property
    def alarming(self) -> bool:
        return self.p < _SURE and (self.auroc["value"] or 0) >= _STRONG


def find(inputs: Inputs) -> Finding:
    """Raises MissingInput where nothing is known of the slides that differs between them."""
    told = _tell_label(inputs)
    if not told:
        raise MissingInput("Give the column `site` (and `scanner`, if known) in the slide table.")
    inputs.progress(0.6)
    site = _told_site(inputs) if inputs.sites is not None else {}
    lost, why = _across_sites(inputs)
    numbers: dict[str, Figure] = {f"label from {t.name}: AUROC": {**t.auroc, "p": t.p} for t in told}
    numbers |= site
    if lost:
        numbers["AUROC with whole sites held out, less that with patients"] = figure_of(lost)
    severity, verdict, remedy = _judge(told, site, lost, why)
    return Finding(
        KEY,
        TITLE,
        severity,
        verdict,
        remedy,
        numbers,
        [_chart(told)],
        _alike_table(inputs),
        {"told": [vars(t) for t in told], "site_splits": why},
    )


def _tell_label(inputs: Inputs) -> list[Told]:
    """Each covariate's AUROC for the label, the strongest first."""
    cohort, config = inputs.cohort, inputs.config
    sources = inputs.sources
    found = covariates(cohort, sources.table, sources.target, inputs.statistics, sources.patches)
    draws = max(config.permutations, round(2 * len(found) / _SURE))  # else no corrected p could be small enough
    labels = shuffled_labels(cohort, inputs.folds, draws, inputs.seed)
    parts, ps, aurocs = parts_of(inputs.folds), [], []
    for covariate in found:
        products = kernel(covariate.vectors)
        ps.append(permutation_p(macro_aurocs(products, labels, inputs.told_classes, cohort.patient_ids, parts)))
        aurocs.append(inputs.probe_on(covariate.vectors).auroc)
        inputs.progress(0.6 * len(ps) / len(found))
    told = [Told(c.name, c.technical, a, p) for c, a, p in zip(found, aurocs, holm(np.array(ps)), strict=True)]
    return sorted(told, key=lambda t: -(t.auroc["value"] or 0))


def _told_site(inputs: Inputs) -> dict[str, Figure]:
    """How well the mean features tell the site, by patients held out; chance is 0.5."""
    assert inputs.sites is not None
    cohort = inputs.cohort
    names, of_slide = np.unique(inputs.sites, return_inverse=True)
    scores = out_of_fold(kernel(inputs.means), np.eye(len(names))[of_slide], cohort.patient_ids, parts_of(inputs.folds))
    tested = np.isfinite(scores).all(axis=1)
    weights = draw_weights(cohort.patient_ids[tested].tolist(), inputs.config.bootstrap, inputs.seed)
    return {"site from features: AUROC": dict(interval(macro_auroc(scores[tested], of_slide[tested], weights, None)))}


def _across_sites(inputs: Inputs) -> tuple[Difference | None, str]:
    """What holding out whole sites costs, or why it cannot be told."""
    cohort, config = replace(inputs.cohort, splits=None), inputs.config
    if inputs.sites is None:
        return None, "the slide table has no column `site` with at least two sites"
    folds = min(config.folds, len(set(inputs.sites)))
    plan = SplitPlan(folds=folds, split="site", seed=config.seed)
    try:
        by_site = inputs.probe_on(inputs.means, make_folds(cohort, plan))
        return inputs.compare(inputs.probe, by_site).gain, ""
    except (RequestError, ValueError) as error:  # sites cannot be dealt out, or the table's split tests only some
        return None, str(error)


def _judge(told: list[Told], site: dict[str, Figure], lost: Difference | None, why: str) -> tuple[Severity, str, str]:
    worst = [t for t in told if t.alarming]
    technical = [t for t in worst if t.technical]
    shown = (site.get("site from features: AUROC") or {}).get("value")
    seen = f", and the features show the site (AUROC {shown:.2f})" if shown and shown >= _STRONG else ""
    if technical:
        first = technical[0]
        verdict = f"The label can be told from {first.name} alone (AUROC {first.auroc['value']:.2f}){seen}."
        if why and first.name == "site":
            verdict += " Whole sites cannot be held out to see what is left."
        return (
            "fault",
            verdict,
            "A model will learn how slides were made instead of the tissue. Add slides of both classes from each site, "
            "or leave out what has only one; judge with --split site, and do not trust any other number.",
        )
    if lost is not None and lost.value < -_LOSS and lost.high < 0 and lost.p < _SURE:
        return (
            "fault" if lost.high < -_LOSS else "look",
            f"On sites that it has not seen the probe loses {-lost.value:.2f} of AUROC "
            f"({-lost.high:.2f}–{-lost.low:.2f}).",
            "Report --split site. Add sites, or try an encoder trained on many scanners.",
        )
    if worst:
        names = " and ".join(t.name for t in worst)
        return (
            "look",
            f"The label goes with the {names} of a slide (AUROC {worst[0].auroc['value']:.2f}).",
            "This can be the disease itself or the way slides were made. Compare within one site; if it is the making, "
            "balance it.",
        )
    tried = ", ".join(t.name for t in told)
    return (
        "fine",
        f"None of {len(told)} ({tried}) tells the label." if len(told) > 1 else f"The {tried} does not tell the label.",
        "Nothing to do." if site else "Give the column `site` to have hospitals and scanners looked at as well.",
    )


def _alike_table(inputs: Inputs) -> list[Details]:
    """The pairs of slides of different sites whose mean features are nearest."""
    if inputs.sites is None:
        return []
    products = kernel(inputs.means)
    size = np.sqrt(np.maximum(np.diag(products), 1e-12))
    alike = products / np.outer(size, size)
    alike[(inputs.sites[:, None] == inputs.sites) | (np.tri(len(size)) > 0)] = -np.inf  # each pair once
    first, second = np.unravel_index(np.argsort(-alike, axis=None)[:_SHOWN], alike.shape)
    names, sites = inputs.cohort.slide_ids, inputs.sites
    rows = [
        (f"{names[i]} ({sites[i]})", f"{names[j]} ({sites[j]})", f"{alike[i, j]:.2f}")
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
        if np.isfinite(alike[i, j])
    ]
    return [Details("Slides that look alike across sites", ("slide", "slide", "cosine"), tuple(rows))] if rows else []


def _chart(told: list[Told]) -> Picture:
    chart = Chart(
        (0, len(told) + 1), (0.3, 1), (420, 300), ("what is known of a slide", "AUROC for the label"), whole_x=True
    )
    chart.guide((0, len(told) + 1), (0.5, 0.5))
    for i, t in enumerate(told, start=1):
        value, low, high = t.auroc["value"], t.auroc["low"], t.auroc["high"]
        if value is None or low is None or high is None:
            continue
        kind = "c1" if t.alarming else "c0"
        chart.line([i, i], [low, high], f"{kind} thin")
        chart.dot(i, value, kind, 5, f"{t.name}: {value:.3f} ({low:.3f}–{high:.3f}), p = {t.p:.3f}")
    names = ", ".join(f"{i}: {t.name}" for i, t in enumerate(told, start=1))
    return Picture("Label from what is not tissue", f"AUROC with its 95 % interval. {names}.", chart.svg(names))
