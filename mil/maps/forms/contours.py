"""Outlines of the highest-scoring tissue as GeoJSON for QuPath."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely

from mil.maps.drawn import Drawn
from mil.maps.qupath import feature, read_origin, rgb, write_features

ENDING = ".contours.geojson"
HELP = "outlines of the highest-scoring tissue as annotations for QuPath"
TOP_SHARES = (0.5, 0.25, 0.1, 0.05, 0.01)  # of the patches


def write(path: Path, drawn: Drawn) -> None:
    write_features(path, contours(drawn), drawn.provenance)


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    return read_origin(path)


def contours(drawn: Drawn) -> list[dict[str, Any]]:
    """One annotation for each of TOP_SHARES: the outline of the patches that score highest, the larger ones first.

    In level-0 pixels less the frame's origin.
    """
    slide, scores = drawn.slide, drawn.scores
    corners = slide.coords - drawn.origin_l0
    boxes = shapely.box(*corners.T, *(corners + slide.patch_size_l0).T)
    features = []
    for share in TOP_SHARES if len(boxes) else ():
        least = np.quantile(scores.values, 1 - share, method="higher")
        inside = scores.values >= least
        properties = {
            "objectType": "annotation",
            "name": f"top {share:.0%} by {scores.kind}",
            "classification": {"name": f"{scores.kind}: top {share:.0%}", "color": rgb(1 - share)},
            "isLocked": True,
            "measurements": {"least score": float(least), "patches": int(inside.sum())},
        }
        outline = shapely.union_all(boxes[inside])
        features.append(feature(shapely.geometry.mapping(outline), properties))
    return features
