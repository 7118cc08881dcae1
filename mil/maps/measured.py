"""What the measures of a map share: their files, and the mean over slides with its interval over patients."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mil.metrics.bootstrap import Bootstrap, Interval, draw_weights, interval
from tiling.jobs.provenance import require_same

_DRAWN = Bootstrap()


def read_measured(path: Path) -> dict[str, Any] | None:
    """None where nothing was measured."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def was_measured(path: Path, origin: Mapping[str, Any]) -> bool:
    """Whether the file is there and was made from `origin`. SlideError where it was made from something else."""
    found = read_measured(path)
    if found is not None:
        require_same({key: found.get(key) for key in origin}, origin, path)
    return found is not None


def mean_over_slides(values: Sequence[float], patients: Sequence[str]) -> Interval:
    """values and patients (S,). One patient says nothing of others: then there is no interval."""
    weights = draw_weights(patients, _DRAWN.draws, _DRAWN.seed)  # (1 + draws, S)
    mean = interval(weights @ np.asarray(values) / weights.sum(1))
    return mean if len(set(patients)) > 1 else {**mean, "low": None, "high": None}
