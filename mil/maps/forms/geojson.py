"""Patch scores as GeoJSON for QuPath: a square a patch with its scores."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.maps.drawn import Drawn
from mil.maps.grid import colour_scale
from mil.maps.qupath import feature, read_origin, rgb, write_features
from mil.maps.scores import PatchScores

ENDING = ".geojson"
HELP = "patches with their scores as detections for QuPath"


def write(path: Path, drawn: Drawn) -> None:
    write_features(path, squares(drawn), drawn.provenance)


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    return read_origin(path)


def squares(drawn: Drawn) -> list[dict[str, Any]]:
    """One detection a patch in level-0 pixels less the frame's origin. `attention` sums to 1."""
    slide, scores = drawn.slide, drawn.scores
    n = len(slide.attention)
    measured: dict[str, list[float]] = {
        scores.meaning: scores.values.tolist(),
        "attention": slide.attention.tolist(),
        "attention (x average)": (slide.attention * n).tolist(),
        **{f"logit {name}": of.tolist() for name, of in zip(slide.classes, slide.patch_logits.T, strict=True)},
    }
    warm = _warmth(scores)
    side, names = slide.patch_size_l0, list(measured)
    classes = [{"name": f"{scores.kind} {step + 1} of 10", "color": rgb((step + 0.5) / 10)} for step in range(10)]
    features = []
    for (x, y), level, values in zip(
        (slide.coords - drawn.origin_l0).tolist(), warm.tolist(), zip(*measured.values(), strict=True), strict=True
    ):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        properties = {
            "objectType": "detection",
            "classification": classes[level],
            "measurements": dict(zip(names, values, strict=True)),
        }
        features.append(feature({"type": "Polygon", "coordinates": [ring]}, properties))
    return features


def _warmth(scores: PatchScores) -> NDArray[np.int64]:
    """(N,) step of the colour scale, 0 (cold) to 9 (warm)."""
    level = np.asarray(colour_scale(scores).norm()(scores.values), np.float64)
    return (10 * level).astype(np.int64).clip(0, 9)
