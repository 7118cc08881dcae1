"""Do a map's warm patches lie on the drawn lesions? Patch AUROC, FROC and Dice against polygons in level-0 pixels.

A patch is lesion where at least LESION_SHARE of it is covered. Each patch at or above a threshold is a detection: a
lesion is found if one of its patches is detected, a detected patch that is no lesion is a false positive. The FROC
score is the mean share of lesions found at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide (Ehteshami Bejnordi et al.,
JAMA 2017). Dice counts patches, at the threshold that is best for these very slides, so it flatters.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

from mil.maps.lesion_truth import LESION_SHARE, covered_share
from mil.maps.scores import PatchScores
from mil.metrics.bootstrap import draw_weights, interval
from mil.run.attention import SlideAttention
from tiling.jobs.atomic import atomic_file, write_json
from tiling.tissue.polygons import read_polygons

FALSE_POSITIVES = (0.25, 0.5, 1, 2, 4, 8)  # a slide
ENDING = ".lesions.json"
_DRAWS = 2000


def write_slide(
    folder: Path, slide: SlideAttention, scores: PatchScores, annotation: Path | None, origin: dict[str, Any]
) -> None:
    """`<slide_id>.lesions.json`: AUROC and Dice of the slide, and what the cohort's figures are made of.

    annotation: None for a slide that is known to have no lesion. origin: what others are not to be taken for, is kept.
    """
    polygons = read_polygons(annotation) if annotation else []
    shares = [covered_share(slide, [polygon]) for polygon in polygons]
    truth = np.any([np.zeros(len(slide.coords), bool), *(share >= LESION_SHARE for share in shares)], axis=0)
    found_at = [float(scores.values[_patches_of(share)].max()) for share in shares if share.any()]
    write_json(
        folder / f"{slide.slide_id}{ENDING}",
        {
            "score": scores.meaning,
            **origin,
            "auroc": roc_auc_score(truth, scores.values) if truth.any() and not truth.all() else None,
            "dice": best_dice(truth, scores.values)[0] if truth.any() else None,
            "lesions_found_at": found_at,  # the highest score of each lesion's patches
            "values": scores.values.tolist(),
            "lesion": truth.astype(int).tolist(),
        },
    )


def write_cohort(folder: Path, patient_of: Mapping[str, str]) -> None:
    """`lesions.json` and `lesions.png` over the slides in `folder`; nothing where no lesion was measured."""
    slides = {i: found for i in patient_of if (found := read_measures(folder / f"{i}{ENDING}"))}
    found_at = np.array([score for slide in slides.values() for score in slide["lesions_found_at"]])
    if not len(found_at):
        return
    aurocs = {i: slide["auroc"] for i, slide in slides.items() if slide["auroc"] is not None}
    values = np.concatenate([slide["values"] for slide in slides.values()])
    truth = np.concatenate([slide["lesion"] for slide in slides.values()]).astype(bool)
    dice, threshold = best_dice(truth, values)
    false_positives, sensitivity = froc(found_at, values[~truth], len(slides))
    at = [float(sensitivity[false_positives <= most].max(initial=0)) for most in FALSE_POSITIVES]
    weights = draw_weights([patient_of[i] for i in aurocs], _DRAWS, 0)
    auroc = interval(weights @ np.array(list(aurocs.values())) / weights.sum(1))
    several = len({patient_of[i] for i in aurocs}) > 1
    cohort = {
        "score": next(iter(slides.values()))["score"],
        "slides": len(slides),
        "lesions": len(found_at),
        "patch_auroc": auroc if several else {**auroc, "low": None, "high": None},
        "dice": dice,
        "dice_threshold": threshold,
        "froc_score": float(np.mean(at)),
        "froc": dict(zip(map(str, FALSE_POSITIVES), at, strict=True)),
    }
    write_json(folder / "lesions.json", cohort)
    with atomic_file(folder / "lesions.png") as temporary:
        _draw(false_positives, sensitivity, cohort).savefig(temporary, format="png", dpi=110)


def read_measures(path: Path) -> dict[str, Any] | None:
    """None where nothing was measured."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


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
