"""Polygons of a GeoJSON file as QuPath writes it, in level-0 pixels (RFC 7946 geometry without its world map)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape

from tiling.jobs.errors import SlideError

Ring = NDArray[np.float64]
"""Vertices (V, 2), level-0 (x, y), the last the first again."""
Polygon = list[Ring]
"""The outer ring, then its holes."""

_REMEDY = "export the annotations from QuPath as GeoJSON (File > Export objects)"


def read_polygons(path: Path) -> list[Polygon]:
    """All polygons of a FeatureCollection, a list of features or one feature. Raises SlideError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SlideError(f"{path}: not a GeoJSON file ({error}); {_REMEDY}") from error
    try:
        return [polygon for feature in _features(content) for polygon in _polygons(feature["geometry"])]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise SlideError(f"{path}: not GeoJSON features with polygons: {reason}; {_REMEDY}") from error


def _features(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if content.get("type", "FeatureCollection") not in ("Feature", "FeatureCollection"):
        raise ValueError(f"found type {content['type']!r}, expected FeatureCollection, Feature or a list of features")
    return [content] if content.get("type") == "Feature" else list(content["features"])


def _polygons(geometry: Any) -> list[Polygon]:
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(
            f"found a geometry of type {geometry['type']!r}, expected Polygon or MultiPolygon: "
            "delete that object or draw it as an area"
        )
    several = geometry["type"] == "MultiPolygon"
    coordinates = geometry["coordinates"] if several else [geometry["coordinates"]]
    return [_polygon(rings) for rings in coordinates if rings]


def _polygon(rings: Any) -> Polygon:
    try:
        area = shape({"type": "Polygon", "coordinates": rings})
        polygon = [shapely.get_coordinates(ring) for ring in (area.exterior, *area.interiors)]  # without heights
    except (ValueError, TypeError):
        polygon = []
    if not polygon or not all(len(ring) and np.isfinite(ring).all() for ring in polygon):
        raise ValueError("a ring is no list of at least three points (x, y) of finite numbers")
    return polygon


def rasterise(polygons: list[Polygon], size: tuple[int, int], downsample: float) -> NDArray[np.bool_]:
    """Pixels (H, W) bool whose centre lies inside any polygon and in none of its holes.

    A pixel is `downsample` level-0 pixels wide. Even-odd scan lines: the parity of the edges left of a centre says
    whether it is inside, which takes vertices + pixels steps, where shapely's point-in-polygon takes their product.
    """
    mask = np.zeros(size, bool)
    for polygon in polygons:
        starts = np.concatenate(polygon) / downsample - 0.5  # pixel centres at whole numbers
        stops = np.concatenate([np.roll(ring, -1, axis=0) for ring in polygon]) / downsample - 0.5
        low, high = np.sort([starts[:, 1], stops[:, 1]], axis=0)
        first = np.clip(np.ceil(low), 0, size[0]).astype(np.int64)  # rows with low <= row < high cross the edge
        crossed = np.clip(np.ceil(high), 0, size[0]).astype(np.int64) - first
        if not crossed.any():
            continue
        edge = np.repeat(np.arange(len(starts)), crossed)
        row = np.arange(len(edge)) - np.repeat(crossed.cumsum() - crossed, crossed) + first[edge]
        dx, dy = (stops - starts)[edge].T
        x = starts[edge, 0] + (row - starts[edge, 1]) * dx / dy
        column = np.clip(np.ceil(x), 0, size[1]).astype(np.int64)  # first centre at or right of the edge
        top, bottom, left, right = row.min(), row.max() + 1, column.min(), column.max()
        edges = np.zeros((bottom - top, right - left + 1), np.int32)
        np.add.at(edges, (row - top, column - left), 1)
        mask[top:bottom, left:right] |= (edges.cumsum(1) % 2 == 1)[:, :-1]
    return mask
