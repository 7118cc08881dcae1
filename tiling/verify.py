"""Finished patch stores read again: every array is there and fits, every patch has its checksum and decodes."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tiling.config import TilingConfig
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.provenance import digest
from tiling.jobs.slide_loop import run_slides
from tiling.jobs.workers import alive
from tiling.manifest import SlideRow, largest_first
from tiling.store.patches import NOT_IN_VERSION, PICTURES, SCORES, PatchStore, store_path
from tiling.store.shards import PATCHES_PER_SHARD

_AT_ONCE = 16  # patches in memory


def verify_stores(rows: Sequence[SlideRow], config: TilingConfig, out: Path, listener: Listener = SILENT) -> Outcomes:
    """Verify the store of every slide and write `verify-summary.json`; a bad one is a failed slide."""
    if not out.is_dir():
        raise RequestError(f"{out}: no such folder; expected the --out folder of an earlier run")
    workers = config.workers or len(os.sched_getaffinity(0))
    execution = Execution(workers, scheduler=config.scheduler, part=config.part, prefix="verify-")
    return run_slides(largest_first(rows), functools.partial(verify_slide, out=out), out, execution, listener)


def verify_slide(row: SlideRow, out: Path) -> Outcome:
    """Outcome of one slide's store: done, or empty where it rightly holds no patch. Raises SlideError if it is bad."""
    path = store_path(out, row.slide_id)
    with lock(path):
        if not path.exists():
            raise SlideError(f"{path}: missing; the slide was not tiled, or its store was moved or deleted")
        count = verify_store(path)
    return Outcome(row.slide_id, "done" if count else "empty", patches=count)


def verify_store(path: Path) -> int:
    """Read a store as a whole and return how many patches it holds. Raises SlideError naming what is wrong."""
    try:
        store = PatchStore(path)
        group = zarr.open_group(store.path, mode="r")
        arrays = {name: _load(array, f"{path}/{name}") for name, array in group.arrays() if name != "patches"}
        _require_fitting(arrays, len(store), store.version, path)
        if store.digest != _digest(store):
            raise SlideError(f"{path}: coordinates or settings are not those that were written (digest differs)")
        if store.has_pixels:
            _verify_patches(store, group)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # what zarr says to damage
        raise SlideError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    return len(store)


def _digest(store: PatchStore) -> str:
    sha = hashlib.sha256(store.coords_l0.astype("<i8").tobytes()).hexdigest()
    return digest([store.info.provenance(), store.version, sha])


def _load(array: Any, name: str) -> NDArray[Any]:
    """The values; zarr itself gives zeros for a chunk file that is missing."""
    if array.nchunks_initialized != array.nchunks:
        raise SlideError(f"{name}: part of the array is missing")
    return np.asarray(array[...])


def _require_fitting(arrays: dict[str, NDArray[Any]], count: int, version: int, path: Path) -> None:
    missing = {"coords_l0", *SCORES, *PICTURES} - set(arrays) - NOT_IN_VERSION.get(version, set())
    if missing:
        raise SlideError(f"{path}: arrays are missing: {', '.join(sorted(missing))}")
    for name, values in arrays.items():
        expected = arrays["thumbnail"].shape[:2] if name in PICTURES else (count,)
        if values.shape[: len(expected)] != expected:
            raise SlideError(f"{path}/{name}: shape is {values.shape}, expected {expected}")
        if name.endswith("_fraction") and not ((values >= 0) & (values <= 1)).all():
            raise SlideError(f"{path}/{name}: has values outside 0 to 1")
        if name.endswith("_mask") and not (values <= 1).all():
            raise SlideError(f"{path}/{name}: has values other than 0 and 1")
    if not (np.isfinite(arrays["sharpness"]) & (arrays["sharpness"] >= 0)).all():
        raise SlideError(f"{path}/sharpness: has values that no patch can have")


def _verify_patches(store: PatchStore, group: zarr.Group) -> None:
    array, folder, side = group.get("patches"), store.path / "patches", store.info.patch_size_px
    shape = (len(store), side, side, 3)
    if not isinstance(array, zarr.Array) or array.shape != shape:
        raise SlideError(f"{folder}: found {getattr(array, 'shape', 'nothing')}, expected an array of shape {shape}")
    shards = sum(file.is_file() for file in (folder / "c").rglob("*"))
    if shards != -(-len(store) // PATCHES_PER_SHARD):
        raise SlideError(f"{folder}: found {shards} shards for {len(store)} patches of {PATCHES_PER_SHARD} a shard")
    for start in range(0, len(store), _AT_ONCE):
        store.read(range(start, min(start + _AT_ONCE, len(store))))
        alive()
