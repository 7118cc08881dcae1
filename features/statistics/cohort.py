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
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.encoders import Encoder
from features.encoders.norms import norm_layers, norm_reference
from features.feature_file import SlideStatistics, read_statistics
from features.statistics.adapted_norms import ADAPTED
from tiling.jobs.atomic import json_text, write_json
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import Locked, is_held, waited_lock
from tiling.jobs.threads import ordered_map
from tiling.objects.files import ObjectFile
from tiling.objects.folder import ObjectFolder

FORMAT, VERSION = "slidemil-statistics", 1
_NAME = "statistics.json"
_ASKED_AT_ONCE = 8  # objects, of each its parts one after the other
EPSILON = 1e-5  # the batch norms' own: a channel that ImageNet leaves constant has a deviation of its root


def write_cohort_statistics(out: Path | ObjectFolder, encoder: Encoder) -> None:
    """Of all feature files in `out` that this encoder made.

    Nothing where none has statistics, none is new, or another job holds the file for a minute. Raises SlideError where
    an object store cannot be reached.
    """
    if isinstance(out, ObjectFolder):
        _renew(out, encoder)
    elif is_held(out / _NAME) or not _is_current(out, encoder, _files(out)):
        with suppress(Locked), waited_lock(out / _NAME):
            _renew(out, encoder)


def _renew(out: Path | ObjectFolder, encoder: Encoder) -> None:
    changed = _files(out)
    if _is_current(out, encoder, changed):
        return
    names = sorted(changed.keys() - {_NAME})
    with closing(ordered_map(lambda name: _statistics(out, name, encoder), names, _at_once(out))) as found:
        content = cohort_statistics((of for of in found if of is not None), encoder)
    if not content["slides"]:
        return
    content["files"] = len(names)
    if isinstance(out, Path):
        write_json(out / _NAME, content)
    else:
        out.put(_NAME, json_text(content).encode())


def _files(out: Path | ObjectFolder) -> dict[str, float]:
    """When each feature file was changed, and what is said of them all."""
    if isinstance(out, ObjectFolder):
        return {name: found.changed_s for name, found in out.files().items() if "/" not in name and _is_wanted(name)}
    with suppress(FileNotFoundError), os.scandir(out) as entries:
        return {entry.name: entry.stat().st_mtime_ns for entry in entries if _is_wanted(entry.name)}
    return {}


def _is_wanted(name: str) -> bool:
    return name.endswith(".h5") or name == _NAME


def _is_current(out: Path | ObjectFolder, encoder: Encoder, changed: Mapping[str, float]) -> bool:
    """Whether what stands there counts all files, each older than it."""
    files = [when for name, when in changed.items() if name != _NAME]
    if changed.get(_NAME, 0) <= max(files, default=0):
        return False
    try:
        said = json.loads((out / _NAME).read_bytes() if isinstance(out, Path) else (out.read(_NAME) or (b"",))[0])
        counted = {key: said[key] for key in ("format", "version", "weights_sha256", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    same = {"format": FORMAT, "version": VERSION, "weights_sha256": encoder.weights_sha256, "files": len(files)}
    return counted == same


def _at_once(out: Path | ObjectFolder) -> int:
    return 1 if isinstance(out, Path) else _ASKED_AT_ONCE


def _statistics(out: Path | ObjectFolder, name: str, encoder: Encoder) -> SlideStatistics | None:
    try:
        if isinstance(out, Path):
            return read_statistics(out / name, encoder.weights_sha256)
        with ObjectFile(out, name) as content:
            return read_statistics(Path(name), encoder.weights_sha256, content)
    except SlideError:  # said when the slide itself was to be done
        return None


def cohort_statistics(slides: Iterable[SlideStatistics], encoder: Encoder) -> dict[str, Any]:
    """The content of `statistics.json`; slides without any tissue do not count."""
    layers = norm_layers(encoder.unmerged)
    count, colours, norms = 0, Pool(), Pool()
    for of in slides:
        if not of.tissue_pixels:
            continue
        count += 1
        colours.add(of.tissue_pixels, of.pixel_mean, of.pixel_std**2)
        if layers and of.norm_patches and of.norm_layers == layers:
            norms.add(of.norm_patches, of.norm_mean.astype(np.float64), of.norm_var.astype(np.float64))
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "slides": count,
        "tissue_pixels": colours.size,
        "pixel_mean": colours.mean.tolist(),
        "pixel_std": np.sqrt(colours.variance).tolist(),
        "encoder_mean": list(encoder.preprocessing.mean),
        "encoder_std": list(encoder.preprocessing.std),
    }
    if norms.size:
        content["batch_norm"] = {"patches": norms.size}
        if not encoder.weights.startswith("random") and not encoder.weights.endswith(ADAPTED):
            content["batch_norm"] |= _distances(norms, encoder, layers)
    return content


def _distances(norms: "Pool", encoder: Encoder, layers: dict[str, int]) -> dict[str, Any]:
    assert encoder.unmerged is not None
    trained_mean, trained_variance = norm_reference(encoder.unmerged)
    distances = frechet_by_layer(norms.mean, norms.variance, trained_mean, trained_variance, layers).tolist()
    return {"distance": float(np.nanmean(distances)), "layers": dict(zip(layers, distances, strict=True))}


def frechet_by_layer(mean: Any, variance: Any, trained_mean: Any, trained_variance: Any, layers: dict[str, int]) -> Any:
    """The distance (…, L) of each layer, of moments (…, ΣC) to those of the training (ΣC,)."""
    trained_std, std = np.sqrt(trained_variance + EPSILON), np.sqrt(variance + EPSILON)
    squared = ((mean - trained_mean) ** 2 + (std - trained_std) ** 2) / trained_std**2
    return np.stack([np.sqrt(part.mean(-1)) for part in by_layer(squared, layers)], -1)


def by_layer(values: Any, layers: dict[str, int]) -> list[Any]:
    """values (…, ΣC) → L arrays (…, C)."""
    return np.split(values, np.cumsum(list(layers.values()))[:-1], -1)


class Pool:
    """Mean and variance (K,) of all that is in groups, added one by one (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.size = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)  # of deviations from the mean, summed

    def add(self, size: int, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        """A group of `size` members."""
        if not self.size:
            self.mean, self._squares = np.zeros_like(mean), np.zeros_like(mean)
        apart, before = mean - self.mean, self.size
        self.size += size
        self.mean = self.mean + apart * (size / self.size)
        self._squares = self._squares + size * variance + apart**2 * (before * size / self.size)

    @property
    def variance(self) -> NDArray[np.float64]:
        return self._squares / self.size
