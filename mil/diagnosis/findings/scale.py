"""Finding: whether the same slides are told apart better at another µm per pixel, and whether all have one scale."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mil.cohort.cohort import SCALE_RATIO, Cohort
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.cell_size import cell_size_px
from mil.diagnosis.numbers.folds import within
from mil.diagnosis.numbers.probe import Probe, figure_of
from mil.diagnosis.numbers.site_ratio import SiteRatio, site_ratios
from mil.evaluation.baseline import slide_means
from mil.pages.chart import Chart
from tiling.jobs.errors import RequestError

KEY, TITLE, SHARE = "scale", "Scale", 5
_MEASURED = 8  # patches a slide whose cells are measured
_ODD, _SURELY = 1.3, 1.1  # ratio of cell sizes between sites that no tissue explains, and the end of its interval


@dataclass(frozen=True)
class _AtScale:
    name: str
    mpp: float  # median µm per patch pixel; NaN if unknown
    slides: NDArray[np.bool_]  # (S,) of the diagnosed cohort that are there
    means: NDArray[np.float64]  # (S, D), zero where there is no slide


def find(inputs: Inputs) -> Finding:
    """AUROC of the linear probe at each scale, on the slides that all scales have and the same folds."""
    known = np.array([info.mpp for info in inputs.cohort.infos])
    known = known[np.isfinite(known)]
    if len(known) and known.max() > SCALE_RATIO * known.min():
        return Finding(
            KEY,
            TITLE,
            "fault",
            f"The slides were cut at different scales, from {known.min():.3g} to {known.max():.3g} µm per pixel.",
            "Tile all slides again with one --mpp and extract their features again: a cell must have one size.",
            {"largest scale over smallest": {"value": float(known.max() / known.min()), "low": None, "high": None}},
        )
    cells = _cells_by_site(inputs)
    wrong = [r for r in cells if r.beyond(_ODD, _SURELY)]
    if wrong:
        return _odd_site(wrong[0], cells)
    if inputs.sources.scales:
        return replace(_compare(inputs), details=_cell_table(cells))
    if not cells:
        raise MissingInput(
            "Give --scales and one or more folders of features of the same slides, tiled with another --mpp; and "
            "--patches, with a column `site`, to see whether what is recorded as the scale is true."
        )
    return Finding(
        KEY,
        TITLE,
        "fine",
        "Cells are of about the same size at all sites, so the recorded scales agree with the pictures.",
        "Nothing to do. Give --scales and features of the same slides at another --mpp to see which scale is best.",
        _cell_figures(cells),
        details=_cell_table(cells),
    )


def _cells_by_site(inputs: Inputs) -> list[SiteRatio]:
    """Size of cells in each site against the others; nothing without patches or sites."""
    if inputs.sources.patches is None or inputs.sites is None:
        return []
    sample = inputs.sample
    sizes = np.full(len(inputs.cohort.slide_ids), np.nan)
    for slide in np.unique(sample.slides):
        rows = np.flatnonzero(sample.slides == slide)[:_MEASURED]
        measured = [cell_size_px(sample.pixels[row]) for row in rows]
        if np.isfinite(measured).any():
            sizes[slide] = np.nanmedian(measured)
    return site_ratios(sizes, inputs.sites, inputs.cohort.patient_ids, inputs.seed)


def _odd_site(odd: SiteRatio, cells: list[SiteRatio]) -> Finding:
    ratio = odd.ratio["value"] or np.nan
    return Finding(
        KEY,
        TITLE,
        "fault",
        f"Cells of {odd.site} are {ratio:.2g} times as large as elsewhere, at the same recorded scale.",
        f"Check the µm per pixel of {odd.site}: give the true one in the column mpp of the slide table, then tile "
        f"and extract its slides again. The recorded scale seems to be off by about {max(ratio, 1 / ratio):.2g}.",
        _cell_figures(cells),
        details=_cell_table(cells),
        evidence={"site": odd.site},
    )


def _cell_figures(cells: list[SiteRatio]) -> dict[str, Figure]:
    return {f"size of cells in {r.site} over the others": r.ratio for r in cells[:3]}


def _cell_table(cells: list[SiteRatio]) -> list[Details]:
    rows = tuple(
        (r.site, str(r.slides), f"{r.ratio['value']:.2f}", f"{r.ratio['low']:.2f} – {r.ratio['high']:.2f}")
        for r in cells
    )
    return (
        [Details("Size of cells by site", ("site", "slides", "over the others", "95 % interval"), rows)] if rows else []
    )


def _compare(inputs: Inputs) -> Finding:
    own = _AtScale("these features", inputs.cohort.mpp or np.nan, np.ones(len(inputs.means), bool), inputs.means)
    others = []
    for i, folder in enumerate(inputs.sources.scales):
        others.append(_load(inputs, folder))
        inputs.progress((i + 1) / (2 * len(inputs.sources.scales)))
    scales = sorted([own, *others], key=lambda scale: scale.mpp)
    shared = np.logical_and.reduce([scale.slides for scale in scales])
    folds = [within(fold, shared) for fold in inputs.folds]
    probes = [inputs.probe_on(scale.means, folds) for scale in scales]
    best = int(np.argmax([probe.auroc["value"] or 0 for probe in probes]))
    here = next(i for i, scale in enumerate(scales) if scale is own)
    gain = inputs.compare(probes[here], probes[best]).gain
    better = best != here and gain.low > 0
    said = [f"{_name(s)}: AUROC {p.auroc['value']:.2f}" for s, p in zip(scales, probes, strict=True)]
    if better:
        verdict = f"Slides are told apart better at {_name(scales[best])} than at {_name(own)}."
        remedy = f"Tile with --mpp {scales[best].mpp:.3g} and extract again, then train on those features."
    else:
        verdict = f"No other scale is shown to be better than {_name(own)} ({'; '.join(said)})."
        remedy = "Keep the scale. Of scales that do equally well the coarser one is cheaper."
    return Finding(
        KEY,
        TITLE,
        "look" if better else "fine",
        verdict,
        remedy,
        {
            **{f"AUROC at {_name(s)}": p.auroc for s, p in zip(scales, probes, strict=True)},
            "gain at the best scale": figure_of(gain),
        },
        [_chart(scales, probes)],
        evidence={"slides": int(shared.sum()), "mpp": [scale.mpp for scale in scales], "p": gain.p},
    )


def _load(inputs: Inputs, folder: Path) -> _AtScale:
    """Raises RequestError, also for features of another encoder: its gain would be taken for that of the scale."""
    cohort = inputs.other_features(folder)
    for key in ("encoder", "weights_sha256", "normalisation"):
        if cohort.encoder[key] != inputs.cohort.encoder[key]:
            raise RequestError(
                f"--scales {folder.name}: {key} is {cohort.encoder[key]!r}, expected {inputs.cohort.encoder[key]!r}; "
                "only the scale may differ"
            )
    at = {name: i for i, name in enumerate(cohort.slide_ids)}
    means, there = slide_means(cohort), np.array([name in at for name in inputs.cohort.slide_ids])
    placed = np.zeros((len(there), means.shape[1]))
    placed[there] = means[[at[name] for name in inputs.cohort.slide_ids[there]]]
    return _AtScale(folder.name, _mpp(cohort), there, placed)


def _mpp(cohort: Cohort) -> float:
    return np.nan if cohort.mpp is None else cohort.mpp


def _name(scale: _AtScale) -> str:
    return f"{scale.mpp:.3g} µm/px" if np.isfinite(scale.mpp) else scale.name


def _chart(scales: list[_AtScale], probes: list[Probe]) -> Picture:
    chart = Chart((0, len(scales) + 1), (0.3, 1), (420, 300), ("scale, fine to coarse", "AUROC"), whole_x=True)
    chart.guide((0, len(scales) + 1), (0.5, 0.5))
    for i, (scale, probe) in enumerate(zip(scales, probes, strict=True), start=1):
        _bar(chart, i, probe.auroc, _name(scale))
    names = ", ".join(f"{i}: {_name(scale)}" for i, scale in enumerate(scales, start=1))
    return Picture("AUROC by scale", f"Linear probe with its 95 % interval over patients. {names}.", chart.svg(names))


def _bar(chart: Chart, x: float, auroc: Figure, said: str) -> None:
    value, low, high = auroc["value"], auroc["low"], auroc["high"]
    if value is None or low is None or high is None:
        return
    chart.line([x, x], [low, high], "c0 thin")
    chart.dot(x, value, "c0", 5, f"{said}: {value:.3f} ({low:.3f}–{high:.3f})")
