"""Do a map's warm patches lie on the drawn lesions? Patch AUROC, FROC and Dice against polygons in level-0 pixels.

A patch is lesion where the polygons cover at least LESION_SHARE of it. Each patch at or above a threshold is a
detection: a lesion is found if one of its patches is detected, a detected patch that is no lesion is a false positive.
The FROC score is the mean share of lesions found at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide (Ehteshami Bejnordi
et al., JAMA 2017). Dice counts patches, at the threshold that is best for these very slides, so it flatters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

from mil.maps.measured import mean_over_slides, read_measured
from mil.maps.scores import PatchScores, default_kind, patch_scores
from mil.metrics.bootstrap import Interval
from mil.run.attention import SlideAttention, attention_path, read_attention
from tiling.jobs.atomic import atomic_file, write_json
from tiling.manifest import SlideRow
from tiling.tissue.polygons import Polygon, read_polygons

LESION_SHARE = 0.25  # a patch counts as lesion when at least this much of it is
FALSE_POSITIVES = (0.25, 0.5, 1, 2, 4, 8)  # a slide
ENDING = ".lesions.json"


def write_slide(
    folder: Path, slide: SlideAttention, scores: PatchScores, annotation: Path | None, origin: dict[str, Any]
) -> None:
    """`<slide_id>.lesions.json`: AUROC and Dice of the slide, and what the cohort's figures are made of.

    annotation: None for a slide that is known to have no lesion. origin: what others are not to be taken for, is kept.
    """
    polygons = read_polygons(annotation) if annotation else []
    truth, shares = lesion_patches(slide, polygons), [covered_share(slide, [polygon]) for polygon in polygons]
    found_at = [float(scores.values[_patches_of(share)].max()) for share in shares if share.any()]
    write_json(
        folder / f"{slide.slide_id}{ENDING}",
        {
            "score": scores.meaning,
            **origin,
            "auroc": patch_auroc(truth, scores.values),
            "dice": best_dice(truth, scores.values)[0] if truth.any() else None,
            "lesions_found_at": found_at,  # the highest score of each lesion's patches
            "values": scores.values.tolist(),
            "lesion": truth.astype(int).tolist(),
        },
    )


def write_cohort(folder: Path, patient_of: Mapping[str, str]) -> None:
    """`lesions.json` and `lesions.png` over the slides in `folder`; nothing where no lesion was measured."""
    slides = {i: found for i in patient_of if (found := read_measured(folder / f"{i}{ENDING}"))}
    found_at = np.array([score for slide in slides.values() for score in slide["lesions_found_at"]])
    if not len(found_at):
        return
    aurocs = {i: slide["auroc"] for i, slide in slides.items() if slide["auroc"] is not None}
    values = np.concatenate([slide["values"] for slide in slides.values()])
    truth = np.concatenate([slide["lesion"] for slide in slides.values()]).astype(bool)
    dice, threshold = best_dice(truth, values)
    false_positives, sensitivity = froc(found_at, values[~truth], len(slides))
    at = [float(sensitivity[false_positives <= most].max(initial=0)) for most in FALSE_POSITIVES]
    cohort = {
        "score": next(iter(slides.values()))["score"],
        "slides": len(slides),
        "lesions": len(found_at),
        "patch_auroc": mean_over_slides(list(aurocs.values()), [patient_of[i] for i in aurocs]),
        "dice": dice,
        "dice_threshold": threshold,
        "froc_score": float(np.mean(at)),
        "froc": dict(zip(map(str, FALSE_POSITIVES), at, strict=True)),
    }
    write_json(folder / "lesions.json", cohort)
    with atomic_file(folder / "lesions.png") as temporary:
        _draw(false_positives, sensitivity, cohort).savefig(temporary, format="png", dpi=110)


@dataclass(frozen=True)
class LesionAgreement:
    """Patch-level AUROC inside a slide, its mean over annotated slides with an interval over patients."""

    attention: Interval
    shown: Interval  # by what export-heatmaps shows unless another score is asked for, of the slide's own class
    slides: int
    lesion_patches: int
    patches: int


def lesion_agreement(run: Path, rows: Sequence[SlideRow]) -> LesionAgreement:
    """Compare the run's out-of-fold patch scores with the annotation of every annotated slide in `rows`.

    Slides in which no patch, or every patch, is lesion say nothing and are left out.
    """
    aurocs, patients, truths = [], [], []
    for row in rows:
        path = attention_path(run, row.slide_id)
        if row.annotation is None or not path.exists():
            continue
        slide = read_attention(path)
        truth = lesion_patches(slide, read_polygons(row.annotation))
        scores = patch_scores(slide, default_kind(slide), slide.label)
        found = patch_auroc(truth, slide.attention), patch_auroc(truth, scores.values)
        if found[0] is not None and found[1] is not None:
            aurocs.append(found)
            patients.append(row.patient_id)
            truths.append(truth)
    if not aurocs:
        nothing: Interval = {"value": None, "low": None, "high": None}
        return LesionAgreement(nothing, nothing, 0, 0, 0)
    attention, shown = (mean_over_slides(values, patients) for values in zip(*aurocs, strict=True))
    every = np.concatenate(truths)
    return LesionAgreement(attention, shown, len(aurocs), int(every.sum()), len(every))


def lesion_patches(slide: SlideAttention, polygons: Sequence[Polygon]) -> NDArray[np.bool_]:
    """(N,) whether a patch is lesion."""
    return covered_share(slide, polygons) >= LESION_SHARE


def covered_share(slide: SlideAttention, polygons: Sequence[Polygon]) -> NDArray[np.float64]:
    """Share (N,) of each patch's area inside any of the polygons. Holes are outside, as is what a ring rounds twice."""
    drawn = shapely.get_parts(shapely.make_valid([shapely.Polygon(outer, holes) for outer, *holes in polygons]))
    region = shapely.union_all(drawn[shapely.get_dimensions(drawn) == 2])  # not the lines that hands leave
    shapely.prepare(region)
    boxes = shapely.box(*slide.coords.T, *(slide.coords + slide.patch_size_l0).T)
    share: NDArray[np.float64] = shapely.covers(region, boxes).astype(np.float64)
    edge = (share == 0) & shapely.intersects(region, boxes)  # to cut is slow, and few patches lie on an edge
    share[edge] = shapely.area(shapely.intersection(region, boxes[edge])) / slide.patch_size_l0**2
    return share


def patch_auroc(truth: NDArray[np.bool_], values: NDArray[np.floating]) -> float | None:
    """None where no patch, or every patch, is lesion."""
    return float(roc_auc_score(truth, values)) if truth.any() and not truth.all() else None


def best_dice(truth: NDArray[np.bool_], values: NDArray[np.float64]) -> tuple[float, float]:
    """The highest Dice coefficient of {values >= threshold} and the truth, both (N,), and that threshold."""
    precision, recall, thresholds = precision_recall_curve(truth, values)
    both = precision + recall
    dice = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)[:-1]
    best = int(dice.argmax())
    return float(dice[best]), float(thresholds[best])


def froc(
    found_at: NDArray[np.float64], others: NDArray[np.float64], slides: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives a slide and share of lesions found, at each lesion's score as threshold, both rising.

    found_at: (L,) scores at which lesions are found; others: scores of patches that are no lesion.
    """
    thresholds = np.sort(found_at)[::-1]
    counts = len(others) - np.searchsorted(np.sort(others), thresholds, side="left")
    return counts / slides, np.searchsorted(-thresholds, -thresholds, side="right") / len(found_at)


def _patches_of(share: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Patches that are the lesion, or for a smaller one those that hold most of it."""
    return share >= min(LESION_SHARE, float(share.max()))


def _draw(false_positives: NDArray[np.float64], sensitivity: NDArray[np.float64], cohort: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = np.clip(false_positives, FALSE_POSITIVES[0] / 2, None)
    axes.step(np.r_[shown[0], shown], np.r_[0, sensitivity], where="post", color="#c2410c", linewidth=2)
    axes.plot(FALSE_POSITIVES, list(cohort["froc"].values()), "o", color="0.25")
    axes.set_xscale("log", base=2)
    axes.set_xticks(FALSE_POSITIVES, [f"{f:g}" for f in FALSE_POSITIVES])
    axes.set_xlim(FALSE_POSITIVES[0] / 2, 2 * FALSE_POSITIVES[-1])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("patches a slide that are warm and no lesion")
    axes.set_ylabel("share of lesions found")
    axes.set_title(
        f"{cohort['lesions']} lesions, {cohort['slides']} slides: FROC score {cohort['froc_score']:.2f}", fontsize=10
    )
    return figure
