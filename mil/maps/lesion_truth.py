"""Does attention find the annotated regions? Patch scores against polygons drawn in level-0 pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mil.metrics.bootstrap import Interval, draw_weights, interval
from mil.run.attention import SlideAttention, attention_path, read_attention
from tiling.manifest import SlideRow
from tiling.tissue.polygons import Polygon, read_polygons

LESION_SHARE = 0.25  # a patch counts as lesion when at least this much of it is
_PROBES = 16  # points a side at which a patch is asked whether it is inside


@dataclass(frozen=True)
class LesionAgreement:
    """Patch-level AUROC inside a slide, its mean over annotated slides with an interval over patients."""

    attention: Interval
    patch_logit: Interval  # of the slide's own class: the classifier applied to each patch alone
    slides: int
    lesion_patches: int
    patches: int


def lesion_agreement(run: Path, rows: Sequence[SlideRow], draws: int = 2000, seed: int = 0) -> LesionAgreement:
    """Compare the run's out-of-fold patch scores with the annotation of every annotated slide in `rows`.

    Slides in which no patch, or every patch, is lesion say nothing and are left out.
    """
    aurocs, patients, lesions, total = [], [], 0, 0
    for row in rows:
        path = attention_path(run, row.slide_id)
        if row.annotation is None or not path.exists():
            continue
        slide = read_attention(path)
        truth = covered_share(slide, read_polygons(row.annotation)) >= LESION_SHARE
        if truth.all() or not truth.any():
            continue
        logits = slide.patch_logits[:, slide.classes.index(slide.label)]
        aurocs.append([roc_auc_score(truth, slide.attention), roc_auc_score(truth, logits)])
        patients.append(row.patient_id)
        lesions, total = lesions + int(truth.sum()), total + len(truth)
    if not aurocs:
        nothing: Interval = {"value": None, "low": None, "high": None}
        return LesionAgreement(nothing, nothing, 0, 0, 0)
    weights = draw_weights(patients, draws, seed)  # (1 + draws, slides)
    means = weights @ np.array(aurocs) / weights.sum(1, keepdims=True)
    return LesionAgreement(interval(means[:, 0]), interval(means[:, 1]), len(aurocs), lesions, total)


def covered_share(slide: SlideAttention, polygons: Sequence[Polygon]) -> NDArray[np.float64]:
    """Share (N,) of each patch inside any of the polygons, by a grid of 16 × 16 points in it. Holes are outside."""
    steps = (np.arange(_PROBES) + 0.5) / _PROBES * slide.patch_size_l0
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    points = (slide.coords[:, None, :] + offsets).reshape(-1, 2)
    inside = np.zeros(len(points), bool)
    for polygon in polygons:
        in_rings = [Outline(ring).contains_points(points) for ring in polygon]
        inside |= np.logical_xor.reduce(in_rings)
    return np.asarray(inside.reshape(len(slide.coords), -1).mean(1))
