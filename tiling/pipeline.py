"""One slide from file to patch store."""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.artifact import lock, package_versions, require_same, slide_fingerprint
from tiling.batch import Outcome, run_batch
from tiling.config import TilingConfig
from tiling.grid import Scale, choose_scale, covered_fraction, patch_grid, read_patches
from tiling.manifest import SlideRow
from tiling.patches import PatchStore, PatchStoreInfo, write_store
from tiling.quality import sharpness
from tiling.slide import Pixels, Slide, open_slide
from tiling.tissue import map_tissue, mask_downsample, read_thumbnail


def store_path(out: Path, slide_id: str) -> Path:
    return out / f"{slide_id}.zarr"


def tile_slides(rows: Sequence[SlideRow], config: TilingConfig, out: Path) -> int:
    """Tile every slide into `out`; return the exit code."""
    work = functools.partial(tile_slide, config=config, out=out)
    workers = config.workers or len(os.sched_getaffinity(0))
    return run_batch(
        rows,
        work,
        out=out,
        verb="tile-slides",
        workers=workers,
        scheduler=config.scheduler,
        part=config.part,
    )


def tile_slide(row: SlideRow, config: TilingConfig, out: Path) -> Outcome:
    """Write one slide's store, or skip it where the same store is there. Raises SlideError."""
    path = store_path(out, row.slide_id)
    with lock(path):
        assert row.path is not None
        slide = open_slide(row.path)
        try:
            return _tile(slide, row, config, path)
        finally:
            slide.close()


def _tile(slide: Slide, row: SlideRow, config: TilingConfig, path: Path) -> Outcome:
    scale = choose_scale(slide, config.mpp, config.patch_px, config.overlap_px, row.mpp)
    assert row.path is not None
    fingerprint = slide_fingerprint(row.path)
    info = _info(slide, row, config, scale, fingerprint)
    if path.exists() and not config.overwrite:
        store = PatchStore(path)
        require_same(store.info.provenance(), info.provenance(), path)
        return Outcome(row.slide_id, "skipped", "already done", len(store))
    thumbnail = read_thumbnail(slide, mask_downsample(slide, scale.mpp_l0))
    mask = map_tissue(thumbnail, config.tissue, scale.mpp_l0).tissue
    coords_l0, tissue_fraction = _tissue_patches(slide, scale, mask, thumbnail.downsample, config.min_tissue)
    info = replace(info, thumbnail_downsample=thumbnail.downsample)
    patches = _scored(read_patches(slide, scale, coords_l0))
    write_store(path, info, coords_l0, tissue_fraction, mask, thumbnail.pixels, patches)
    if len(coords_l0) == 0:
        return Outcome(row.slide_id, "empty", _why_empty(slide, scale, mask, config))
    return Outcome(row.slide_id, "done", patches=len(coords_l0))


def _tissue_patches(
    slide: Slide, scale: Scale, mask: NDArray[np.bool_], downsample: float, min_tissue: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Corners (N, 2) and tissue fractions (N,) of the grid's patches with enough tissue."""
    coords_l0 = patch_grid(*slide.level_sizes[0], scale)
    fraction = covered_fraction(mask, downsample, coords_l0, scale.patch_size_l0)
    kept = fraction >= min_tissue if min_tissue > 0 else np.ones(len(fraction), bool)
    return coords_l0[kept], fraction[kept]


def _scored(patches: Iterator[Pixels]) -> Iterator[tuple[Pixels, float]]:
    for patch in patches:
        yield patch, sharpness(patch)


def _why_empty(slide: Slide, scale: Scale, mask: NDArray[np.bool_], config: TilingConfig) -> str:
    width, height = slide.level_sizes[0]
    if min(width, height) < scale.patch_size_l0:
        return f"the slide ({width} × {height} px) is smaller than a patch ({scale.patch_size_l0} level-0 px)"
    return f"no patch has {config.min_tissue:.0%} tissue; tissue covers {mask.mean():.1%} of the slide"


def _info(
    slide: Slide,
    row: SlideRow,
    config: TilingConfig,
    scale: Scale,
    fingerprint: str,
) -> PatchStoreInfo:
    width_l0, height_l0 = slide.level_sizes[0]
    return PatchStoreInfo(
        slide_id=row.slide_id,
        fingerprint=fingerprint,
        width_l0=width_l0,
        height_l0=height_l0,
        mpp_l0=scale.mpp_l0,
        mpp_source=scale.mpp_source,
        mpp_table=math.nan if row.mpp is None else row.mpp,
        mpp=scale.mpp,
        patch_size_px=scale.patch_size_px,
        patch_size_l0=scale.patch_size_l0,
        overlap_px=config.overlap_px,
        level=scale.level,
        backend=slide.backend,
        config=config.content(),
        packages=package_versions(),
    )
