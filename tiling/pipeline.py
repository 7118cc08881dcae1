"""One slide from file to patch store."""

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.config import TilingConfig
from tiling.finished import content, ended, finished_store, mask_sha256, mpp_in_table
from tiling.grid.corners import covered_fraction, padded_fraction, patch_grid
from tiling.grid.fit import fitted_grid, grid_through
from tiling.grid.resample import on_slide, read_patch
from tiling.grid.scale import Scale, choose_scale
from tiling.jobs.locks import Locked, lock
from tiling.jobs.outcomes import Outcome
from tiling.jobs.provenance import package_versions, require_same
from tiling.jobs.threads import ordered_map
from tiling.jobs.workers import alive, cores
from tiling.manifest import SlideRow
from tiling.qc.fault import fault_of
from tiling.qc.picture import write_qc
from tiling.rules import RULES
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide
from tiling.slides.slide import NO_SUBSAMPLING, Slide
from tiling.store.patches import (
    MASK_SCORES,
    Candidates,
    MadePatch,
    PatchStore,
    PatchStoreInfo,
    encode,
    read_head,
    store_path,
    write_store,
)
from tiling.tissue.sharpness import sharpness
from tiling.tissue.thumbnail import Thumbnail, mask_downsample, read_thumbnail
from tiling.tissue.tissue import TissueMap, map_tissue
from tiling.tissue.user_mask import read_user_mask


def tile_slide(row: SlideRow, config: TilingConfig, out: Path) -> Outcome:
    """Write one slide's store, or skip it where the same store is there. Raises SlideError."""
    path = store_path(out, row.slide_id)
    with lock(path):
        if (store := finished_store(row, config, path)) is not None:
            return _with_picture(ended(store, "skipped", "already done"), path, out)
        if row.path is None:
            raise Locked(f"{path.name} was being done when its slide was to be copied")
        slide = open_slide(row.path, overlapping=config.overlap_px > 0)
        try:
            outcome = _tile(slide, row, config, path)
        finally:
            slide.close()
        return _with_picture(outcome, path, out)


def _with_picture(outcome: Outcome, path: Path, out: Path) -> Outcome:
    what = f"the quality-control picture of {outcome.slide_id}"
    return replace(outcome, warning=fault_of(lambda: write_qc(PatchStore(path), out), what))


def _tile(slide: Slide, row: SlideRow, config: TilingConfig, path: Path) -> Outcome:
    scale = choose_scale(slide, config.mpp, config.patch_px, config.overlap_px, row.mpp)
    assert row.path is not None
    fingerprint = slide_fingerprint(row.path)
    info = _info(slide, row, config, scale, fingerprint)
    if path.exists() and not config.overwrite:
        require_same(PatchStore(path).info.provenance(), info.provenance(), path)
    thumbnail = read_thumbnail(slide, mask_downsample(slide, scale.mpp_l0))
    tissue = map_tissue(thumbnail, config.tissue, scale.mpp_l0, _user_mask(slide, row, thumbnail))
    grid = _grid(slide, row, config, scale, tissue.tissue, thumbnail.downsample)
    candidates = _candidates(grid, slide, config, scale, tissue, thumbnail.downsample)
    padding = None if config.grid == "origin" else tissue.glass
    info = replace(info, thumbnail_downsample=thumbnail.downsample, padding_rgb=padding)
    with closing(_make_patches(slide, scale, info, candidates.coords_l0)) as patches:
        count = write_store(path, info, candidates, tissue, thumbnail.pixels, patches)
    if count == 0:
        return Outcome(row.slide_id, "empty", _why_empty(slide, scale, tissue, len(candidates.coords_l0), config))
    return ended(read_head(path), "done")


def _user_mask(slide: Slide, row: SlideRow, thumbnail: Thumbnail) -> NDArray[np.bool_] | None:
    if row.mask is None:
        return None
    return read_user_mask(row.mask, thumbnail.pixels.shape[:2], *slide.level_sizes[0], thumbnail.downsample)


def _grid(
    slide: Slide, row: SlideRow, config: TilingConfig, scale: Scale, tissue: NDArray[np.bool_], downsample: float
) -> NDArray[np.int64]:
    """Corners (N, 2) of all patches of the slide's grid, whatever they show."""
    slide_l0 = slide.level_sizes[0]
    if row.corner_l0 is not None:
        return grid_through(row.corner_l0, slide_l0, scale)
    if config.grid == "origin":
        return patch_grid(*slide_l0, scale)
    return fitted_grid(tissue, downsample, slide_l0, scale, config.min_tissue)


def _candidates(
    coords_l0: NDArray[np.int64],
    slide: Slide,
    config: TilingConfig,
    scale: Scale,
    tissue: TissueMap,
    downsample: float,
) -> Candidates:
    """The grid's patches with enough tissue and little pen."""
    slide_l0, size_l0 = slide.level_sizes[0], scale.patch_size_l0
    masks = (tissue.tissue, tissue.pen, tissue.dark, tissue.white)
    fractions = [covered_fraction(mask, downsample, coords_l0, size_l0, slide_l0) for mask in masks]
    areas = dict(zip(MASK_SCORES, fractions, strict=True))
    areas["padded_fraction"] = padded_fraction(coords_l0, size_l0, slide_l0)
    good = (areas["tissue_fraction"] >= config.min_tissue) & (areas["pen_fraction"] <= config.max_pen)
    return Candidates(coords_l0[good], {name: values[good] for name, values in areas.items()})


def _make_patches(
    slide: Slide, scale: Scale, info: PatchStoreInfo, coords_l0: NDArray[np.int64]
) -> Generator[MadePatch, None, None]:
    """Read, score and encode each candidate on as many threads as this slide may use; blurred ones are left out."""

    def make(index: int) -> MadePatch | None:
        alive()
        x, y = coords_l0[index].tolist()
        pixels = read_patch(slide, scale, x, y, info.padding_rgb)
        score = sharpness(pixels[on_slide(slide, scale, x, y)])
        return MadePatch(index, score, encode(pixels, info)) if score >= info.config["min_sharpness"] else None

    with closing(ordered_map(make, range(len(coords_l0)), len(os.sched_getaffinity(0)), cores)) as made:
        yield from (patch for patch in made if patch is not None)


def _why_empty(slide: Slide, scale: Scale, tissue: TissueMap, candidates: int, config: TilingConfig) -> str:
    width, height = slide.level_sizes[0]
    if min(width, height) < scale.patch_size_l0 and config.grid == "origin":
        return (
            f"the slide ({width} × {height} px) is smaller than a patch ({scale.patch_size_l0} level-0 px); "
            "--grid fit pads it"
        )
    if candidates:
        return f"none of {candidates} patches has a sharpness of {config.min_sharpness:g} or more"
    pen = f" and at most {config.max_pen:.0%} pen" if config.max_pen < 1 else ""
    return f"no patch has {config.min_tissue:.0%} tissue{pen}; tissue covers {tissue.tissue.mean():.1%} of the slide"


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
        mpp_table=mpp_in_table(row),
        mask_sha256=mask_sha256(row),
        mpp=scale.mpp,
        patch_size_px=scale.patch_size_px,
        patch_size_l0=scale.patch_size_l0,
        overlap_px=config.overlap_px,
        level=scale.level,
        reduction=scale.reduction,
        jpeg_subsampling=_subsampling(slide, scale),
        backend=slide.backend,
        config=content(row, config),
        packages=package_versions(),
        rules=RULES,
        remote_version=row.remote_version,
    )


def _subsampling(slide: Slide, scale: Scale) -> str:
    """Colours lose nothing that the slide's own JPEG has not lost already in the very pixels that are read."""
    as_it_is = scale.reduction == 1 and scale.patch_size_l0 == round(scale.patch_size_px * scale.downsample)
    return slide.subsampling[scale.level] if as_it_is else NO_SUBSAMPLING
