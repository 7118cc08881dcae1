"""Is a slide like those that the run was trained on? A distance between mean embeddings, and a limit for it.

A slide is the mean of its patch features, standardised over the training slides. Its distance is Mahalanobis' with the
covariance of the training slides shrunk towards a multiple of the identity (Ledoit & Wolf 2004), which also holds where
there are fewer slides than features. The limit comes from the training slides themselves: each patient is left out in
turn, and its slides are measured from the others. About one in a hundred slides like them lies beyond it; of few
patients more: with nine of the ten UCSB patients for training, 7 % of the images of the tenth.

A slide of another stain, scanner, organ or encoder setting lies beyond it; a rare finding in few patches does not.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

from mil.run.layout import METADATA
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import RequestError

Floats = NDArray[np.float64]
_FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class TrainingSlides:
    """The distribution of S mean embeddings of D features; covariance = axesᵀ diag(variances - floor) axes + floor."""

    mean: NDArray[np.float32]  # (D,)
    scale: NDArray[np.float32]  # (D,)
    axes: NDArray[np.float32]  # (K, D) orthonormal rows
    variances: NDArray[np.float32]  # (K,) along the axes
    floor: float  # variance in every other direction
    limit: float  # distance beyond which a slide is unlike these

    def distance(self, slide_mean: Floats) -> float:
        """Of a mean embedding (D,), as part of the limit: above 1 the slide is unlike the training slides."""
        z = (slide_mean - self.mean) / self.scale
        along = self.axes.astype(np.float64) @ z
        across = max(0.0, float(z @ z - along @ along))
        return math.sqrt(float((along**2 / self.variances).sum()) + across / self.floor) / self.limit


def describe_training_slides(means: Floats, patients: NDArray[np.str_]) -> TrainingSlides:
    """means (S, D) float64 of at least two patients, patients (S,)."""
    n = len(means)
    mean, spread = means.mean(axis=0), means.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1.0)
    z = (means - mean) / scale
    shrinkage = float(np.clip(ledoit_wolf_shrinkage(z, assume_centered=True), 1e-3, 1.0))
    _, singular, axes = np.linalg.svd(z, full_matrices=False)
    kept = singular > 1e-9 * max(singular[0], 1e-9)
    floor = max(shrinkage * float((z**2).sum()) / z.size, 1e-9)
    share = (1 - shrinkage) / n
    variances = share * singular[kept] ** 2 + floor
    coordinates = z @ axes[kept].T  # (S, K)
    left_out = np.sort(_left_out_distances(coordinates, patients, variances, share))
    rank = math.ceil((1 - _FALSE_ALARMS) * (n + 1))
    return TrainingSlides(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        axes=axes[kept].astype(np.float32),
        variances=variances.astype(np.float32),
        floor=floor,
        limit=max(float(left_out[min(rank, n) - 1]), 1e-6),
    )


def _left_out_distances(z: Floats, patients: NDArray[np.str_], variances: Floats, share: float) -> Floats:
    """Distance (S,) of each slide from the slides of all other patients; z (S, K) in the axes of the covariance.

    Leaving m slides out takes m + 1 rows from the scatter matrix, which Woodbury's identity turns into a small system.
    """
    n, distances = len(z), np.empty(len(z))
    for patient in np.unique(patients):
        own = np.flatnonzero(patients == patient)
        m, rows = len(own), z[own]
        if m == n:
            raise ValueError("all slides are of one patient")
        centre = rows.mean(axis=0)
        taken = np.vstack([rows, m / math.sqrt(n - m) * centre])  # (m + 1, K)
        shifted = rows + m / (n - m) * centre  # from the mean of the others
        inner = np.eye(m + 1) - share * (taken / variances) @ taken.T
        across = (shifted / variances) @ taken.T  # (m, m + 1)
        squared = (shifted**2 / variances).sum(axis=1)
        squared += share * np.einsum("ij,ji->i", across, np.linalg.solve(inner, across.T))
        distances[own] = np.sqrt(np.maximum(squared, 0))
    return distances


def write_training_slides(run: Path, slides: TrainingSlides, fingerprints: Mapping[str, str]) -> None:
    """fingerprints: of the slide files by slide id, as far as they are known."""
    tensors = {name: np.asarray(value) for name, value in vars(slides).items()}
    metadata = {METADATA: json.dumps(dict(fingerprints), sort_keys=True)}
    with atomic_file(run / "training.safetensors") as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)


def read_training_slides(run: Path) -> tuple[TrainingSlides | None, dict[str, str]]:
    """What `write_training_slides` was given; none and no fingerprints for a run of version 1."""
    path = run / "training.safetensors"
    if not path.exists():
        return None, {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            fingerprints: dict[str, str] = json.loads(file.metadata()[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path}: not a file of train-mil ({error}); train again") from error
    numbers = {name: tensors.pop(name).item() for name in ("floor", "limit")}
    return TrainingSlides(**tensors, **numbers), fingerprints
