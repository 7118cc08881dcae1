"""CONTRACT `statistics.json` in a folder of feature files: colours of the cohort, and how far it is from ImageNet.

    encoder, weights_sha256    whose feature files are counted
    slides                     how many of them have statistics
    files                      feature files that were in the folder, whoever made them
    tissue_pixels              of all their patches
    pixel_mean, pixel_std      RGB in 0..1 over these pixels
    encoder_mean, encoder_std  what the encoder subtracts and divides by
    batch_norm                 absent without batch norms; else
        patches                how many were looked at
        distance               mean of the layers' distances; absent, as these are, for random weights and adapted norms
        layers                 name → distance

A layer's distance is the root mean square, over its channels, of the 2-Wasserstein distance between two normal
distributions in units of the training's standard deviation: sqrt((m - µ)² + (s - σ)²) / σ, with mean m and deviation s
of the layer's input on this cohort and µ, σ on ImageNet. It is written whole or not at all, at the end of each run.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from features.encoders import Encoder
from features.encoders.norms import norm_layers, norm_reference
from features.feature_file import SlideStatistics, read_info, read_statistics
from features.statistics.adapted_norms import ADAPTED
from tiling.jobs.atomic import write_json
from tiling.jobs.errors import SlideError

FORMAT, VERSION = "slidemil-statistics", 1
EPSILON = 1e-5  # the batch norms' own: a channel that ImageNet leaves constant has a deviation of its root


def write_cohort_statistics(out: Path, encoder: Encoder) -> None:
    """Of all feature files in `out` that this encoder made; nothing where none has statistics, or none is new."""
    if _is_current(out, encoder):
        return
    paths = sorted(out.glob("*.h5"))
    slides = (_statistics(path, encoder) for path in paths)
    found = [slide for slide in slides if slide is not None and slide.tissue_pixels]
    if found:
        write_json(out / "statistics.json", {**cohort_statistics(found, encoder), "files": len(paths)})


def _is_current(out: Path, encoder: Encoder) -> bool:
    """Whether what stands there counts all files, each older than it."""
    try:
        made = (out / "statistics.json").stat().st_mtime_ns
        said = json.loads((out / "statistics.json").read_text(encoding="utf-8"))
        with os.scandir(out) as entries:
            times = [entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".h5")]
        counted = {key: said[key] for key in ("format", "version", "weights_sha256", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    same = {"format": FORMAT, "version": VERSION, "weights_sha256": encoder.weights_sha256, "files": len(times)}
    return counted == same and max(times, default=0) < made


def _statistics(path: Path, encoder: Encoder) -> SlideStatistics | None:
    try:
        same = read_info(path).weights_sha256 == encoder.weights_sha256
        return read_statistics(path) if same else None
    except SlideError:  # said when the slide itself was to be done
        return None


def cohort_statistics(slides: list[SlideStatistics], encoder: Encoder) -> dict[str, Any]:
    """The content of `statistics.json`."""
    pixels = np.array([s.tissue_pixels for s in slides], np.float64)
    mean, variance = pooled(
        pixels, np.stack([s.pixel_mean for s in slides]), np.stack([s.pixel_std**2 for s in slides])
    )
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "slides": len(slides),
        "tissue_pixels": int(sum(s.tissue_pixels for s in slides)),
        "pixel_mean": mean.tolist(),
        "pixel_std": np.sqrt(variance).tolist(),
        "encoder_mean": list(encoder.preprocessing.mean),
        "encoder_std": list(encoder.preprocessing.std),
    }
    layers = norm_layers(encoder.unmerged)
    probed = [s for s in slides if s.norm_patches and s.norm_layers == layers]
    if encoder.unmerged is not None and probed:
        content["batch_norm"] = {"patches": sum(s.norm_patches for s in probed)}
        if not encoder.weights.startswith("random") and not encoder.weights.endswith(ADAPTED):
            content["batch_norm"] |= _distances(probed, encoder, layers)
    return content


def _distances(slides: list[SlideStatistics], encoder: Encoder, layers: dict[str, int]) -> dict[str, Any]:
    assert encoder.unmerged is not None
    patches = np.array([s.norm_patches for s in slides], np.float64)
    mean, variance = pooled(
        patches,
        np.stack([s.norm_mean for s in slides], dtype=np.float64),
        np.stack([s.norm_var for s in slides], dtype=np.float64),
    )
    trained_mean, trained_variance = norm_reference(encoder.unmerged)
    distances = frechet_by_layer(mean, variance, trained_mean, trained_variance, layers).tolist()
    return {"distance": float(np.nanmean(distances)), "layers": dict(zip(layers, distances, strict=True))}


def frechet_by_layer(mean: Any, variance: Any, trained_mean: Any, trained_variance: Any, layers: dict[str, int]) -> Any:
    """The distance (…, L) of each layer, of moments (…, ΣC) to those of the training (ΣC,)."""
    trained_std, std = np.sqrt(trained_variance + EPSILON), np.sqrt(variance + EPSILON)
    squared = ((mean - trained_mean) ** 2 + (std - trained_std) ** 2) / trained_std**2
    return np.stack([np.sqrt(part.mean(-1)) for part in by_layer(squared, layers)], -1)


def by_layer(values: Any, layers: dict[str, int]) -> list[Any]:
    """values (…, ΣC) → L arrays (…, C)."""
    return np.split(values, np.cumsum(list(layers.values()))[:-1], -1)


def pooled(weights: Any, means: Any, variances: Any) -> tuple[Any, Any]:
    """Mean and variance (K,) of all that is in S groups of means and variances (S, K) and sizes (S,)."""
    mean = np.average(means, 0, weights)
    return mean, np.average(variances + (means - mean) ** 2, 0, weights)
