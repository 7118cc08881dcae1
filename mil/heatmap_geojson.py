"""Attention as GeoJSON for QuPath: one square a patch, in level-0 pixels, with its scores as measurements."""

import json
from pathlib import Path
from typing import Any

from mil.run import SlideAttention
from tiling.artifact import write_text


def write_geojson(path: Path, slide: SlideAttention, provenance: dict[str, Any]) -> None:
    """A FeatureCollection; QuPath opens it by drag and drop and colours detections by measurement."""
    write_text(path, json.dumps(feature_collection(slide) | {"slidemil": provenance}))


def feature_collection(slide: SlideAttention) -> dict[str, Any]:
    """One detection a patch. `attention` sums to 1; `attention (x average)` is attention times N."""
    side, n = slide.patch_size_l0, len(slide.attention)
    features = []
    for (x, y), attention, logits in zip(
        slide.coords.tolist(), slide.attention.tolist(), slide.patch_logits.tolist(), strict=True
    ):
        measurements = {"attention": attention, "attention (x average)": attention * n}
        measurements |= {f"logit {name}": logit for name, logit in zip(slide.classes, logits, strict=True)}
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "detection", "measurements": measurements},
            }
        )
    return {"type": "FeatureCollection", "features": features}
