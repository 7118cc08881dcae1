"""Patch scores as GeoJSON for QuPath: a square a patch with its scores, or outlines of the highest-scoring tissue."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from matplotlib import colormaps
from numpy.typing import NDArray

from mil.maps.grid import COLOURS, colour_scale
from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention
from tiling.jobs.atomic import write_text

TOP_SHARES = (0.5, 0.25, 0.1, 0.05, 0.01)  # of the patches, outlined by `contours`
Origin = tuple[int, int]


def write_geojson(path: Path, collection: dict[str, Any], provenance: dict[str, Any]) -> None:
    """A FeatureCollection; QuPath opens it by drag and drop and colours detections by measurement."""
    write_text(path, json.dumps(collection | {"slidemil": provenance}, separators=(",", ":")))


def squares(slide: SlideAttention, scores: PatchScores, origin_l0: Origin = (0, 0)) -> dict[str, Any]:
    """One detection a patch in level-0 pixels less `origin_l0`. `attention` sums to 1."""
    n = len(slide.attention)
    measured: dict[str, list[float]] = {
        scores.meaning: scores.values.tolist(),
        "attention": slide.attention.tolist(),
        "attention (x average)": (slide.attention * n).tolist(),
        **{f"logit {name}": of.tolist() for name, of in zip(slide.classes, slide.patch_logits.T, strict=True)},
    }
    warm = _warmth(scores)
    side, names = slide.patch_size_l0, list(measured)
    classes = [{"name": f"{scores.kind} {step + 1} of 10", "color": _rgb((step + 0.5) / 10)} for step in range(10)]
    features = []
    for (x, y), level, values in zip(
        (slide.coords - origin_l0).tolist(), warm.tolist(), zip(*measured.values(), strict=True), strict=True
    ):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        properties = {
            "objectType": "detection",
            "classification": classes[level],
            "measurements": dict(zip(names, values, strict=True)),
        }
        features.append(_feature({"type": "Polygon", "coordinates": [ring]}, properties))
    return {"type": "FeatureCollection", "features": features}


def contours(slide: SlideAttention, scores: PatchScores, origin_l0: Origin = (0, 0)) -> dict[str, Any]:
    """One annotation for each of TOP_SHARES: the outline of the patches that score highest, the larger ones first."""
    corners = slide.coords - origin_l0
    boxes = shapely.box(*corners.T, *(corners + slide.patch_size_l0).T)
    features = []
    for share in TOP_SHARES if len(boxes) else ():
        least = np.quantile(scores.values, 1 - share, method="higher")
        inside = scores.values >= least
        properties = {
            "objectType": "annotation",
            "name": f"top {share:.0%} by {scores.kind}",
            "classification": {"name": f"{scores.kind}: top {share:.0%}", "color": _rgb(1 - share)},
            "isLocked": True,
            "measurements": {"least score": float(least), "patches": int(inside.sum())},
        }
        outline = shapely.union_all(boxes[inside])
        features.append(_feature(shapely.geometry.mapping(outline), properties))
    return {"type": "FeatureCollection", "features": features}


def _warmth(scores: PatchScores) -> NDArray[np.int64]:
    """(N,) step of the colour scale, 0 (cold) to 9 (warm)."""
    level = np.asarray(colour_scale(scores).norm()(scores.values), np.float64)
    return (10 * level).astype(np.int64).clip(0, 9)


def _rgb(level: float) -> list[int]:
    return [round(255 * part) for part in colormaps[COLOURS](level)[:3]]


def _feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}
