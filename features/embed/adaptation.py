"""Batch norms adapted to the slides of a request (`--adapt-bn`): estimated on a sample of them once, then kept."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from features.config import FeatureConfig
from features.embed.device import pick_devices
from features.embed.patch_source import evenly_spaced, patches_of
from features.encoders import Encoder
from features.statistics.adapted_norms import (
    FILE,
    AdaptedNorms,
    estimate_norms,
    read_norms,
    require_fitting,
    write_norms,
)
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import Locked, lock
from tiling.manifest import SlideRow
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

PATCHES = 512  # in all, at least one a slide; moments of halves of them agree to a few per cent
_AT_ONCE_PX = 8 * 512**2  # of one batch, whose patches are of many slides
_POLL_S = 2.0


def keep_norms(
    rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path, out: Path
) -> AdaptedNorms:
    """What is stored in `out`, or else estimated on `rows` and stored; other jobs wait. Raises RequestError."""
    path = out / FILE
    while True:
        with suppress(Locked), lock(path):
            if not path.exists() or config.overwrite:
                write_norms(path, _estimate(rows, encoder, config, patches))
            norms = read_norms(path)
            require_fitting(norms, encoder, path)
            return norms
        time.sleep(_POLL_S)


def _estimate(rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path) -> AdaptedNorms:
    if encoder.unmerged is None:
        raise RequestError(f"--adapt-bn: {encoder.name} has no batch norms to adapt; leave the flag out")
    samples = list(_samples(rows, patches, max(1, PATCHES // len(rows))))
    if not samples:
        raise RequestError(f"--adapt-bn: no patch can be read from the stores in {patches}")
    sides = {pixels.shape[1] for pixels in samples}
    if len(sides) > 1:
        raise RequestError(f"--adapt-bn: patches have different sides ({sorted(sides)} px); tile them with one")
    pixels = np.concatenate(samples)
    order = np.random.default_rng(0).permutation(len(pixels))
    seen_px = encoder.preprocessing.input_px or min(sides)
    parts = np.array_split(order, max(1, len(order) * seen_px**2 // _AT_ONCE_PX))
    batches = (torch.from_numpy(pixels[part]).permute(0, 3, 1, 2) for part in parts)
    return estimate_norms(encoder, batches, pick_devices(config.device)[0], slides=len(samples))


def _samples(rows: Sequence[SlideRow], patches: Path, each: int) -> Iterator[Pixels]:
    """Evenly spaced patches (n, P, P, 3) of each slide that can be read; the others fail when their turn comes.

    Raises RequestError where a store is tiled again meanwhile: what is kept would be of patches that are gone.
    """
    for row in sorted(rows, key=lambda row: row.slide_id):
        with suppress(SlideError):
            store = PatchStore(patches / f"{row.slide_id}.zarr")
            if len(store):
                yield _read(store, row.path, evenly_spaced(len(store), each))


def _read(store: PatchStore, slide: Path | None, indices: Sequence[int]) -> Pixels:
    try:
        with patches_of(store, slide, indices) as source:
            return source.all()
    finally:
        try:
            store.require_current()
        except SlideError as error:
            raise RequestError(f"--adapt-bn: {error}") from error
