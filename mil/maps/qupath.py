"""GeoJSON as QuPath reads it: features with colours of the map, and what they were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps

from mil.maps.grid import COLOURS
from tiling.jobs.atomic import write_text

_KEY = "slidemil"  # beside the features


def write_features(path: Path, features: list[dict[str, Any]], provenance: Mapping[str, Any]) -> None:
    """A FeatureCollection; QuPath opens it by drag and drop and colours detections by measurement."""
    collection = {"type": "FeatureCollection", "features": features, _KEY: provenance}
    write_text(path, json.dumps(collection, separators=(",", ":")))


def read_origin(path: Path) -> dict[str, Any]:
    """What a collection says of its origin; empty if it was not made by this program."""
    return dict(json.loads(path.read_text(encoding="utf-8")).get(_KEY, {}))


def feature(geometry: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def rgb(level: float) -> list[int]:
    """The map's colour at `level`, 0 (cold) to 1 (warm)."""
    return [round(255 * part) for part in colormaps[COLOURS](level)[:3]]
