"""Batch norms adapted to the slides of a request (`--adapt-bn`): estimated on a sample of them once, then kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from features.config import FeatureConfig
from features.embed.device import pick_devices
from features.embed.sample import draw_sample, make_once
from features.encoders import Encoder
from features.statistics.adapted_norms import (
    FILE,
    AdaptedNorms,
    estimate_norms,
    read_norms,
    require_fitting,
    write_norms,
)
from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow

PATCHES = 512  # in all, at least one a slide; moments of halves of them agree to a few per cent
_AT_ONCE_PX = 8 * 512**2  # of one batch, whose patches are of many slides
_SEED = 0  # of the patches' order


def keep_norms(
    rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path, out: Path
) -> AdaptedNorms:
    """What is stored in `out`, or else estimated on `rows` and stored; other jobs wait. Raises RequestError."""
    path = out / FILE
    make_once(path, config.fits_anew, lambda: write_norms(path, _estimate(rows, encoder, config, patches)))
    norms = read_norms(path)
    require_fitting(norms, encoder, path)
    return norms


def _estimate(rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path) -> AdaptedNorms:
    if encoder.unmerged is None:
        raise RequestError(f"--adapt-bn: {encoder.name} has no batch norms to adapt; leave the flag out")
    sample = draw_sample(rows, patches, PATCHES, _SEED, "--adapt-bn")
    seen_px = encoder.preprocessing.input_px or sample.pixels.shape[1]
    parts = np.array_split(sample.pixels, max(1, len(sample.pixels) * seen_px**2 // _AT_ONCE_PX))
    batches = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts)
    return estimate_norms(encoder, batches, pick_devices(config.device)[0], slides=sample.slides)
