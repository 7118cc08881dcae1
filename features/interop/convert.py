"""Feature files of one layout to another's: read, fill what is missing from flags and table, check, write."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.feature_file import Embeddings
from features.interop.clam import with_patches
from features.interop.config import ConvertConfig
from features.interop.description import Description, Found, embeddings, joined, require
from features.interop.layout_file import Layout
from features.interop.reader import LAYOUTS, FeatureFolder
from features.request import Candidates, requested_slides
from tiling.grid.scale import choose_scale
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow, select_part
from tiling.slides.opening import open_slide

if TYPE_CHECKING:
    import pandas as pd


def find_slides(source: FeatureFolder, slides: "Path | pd.DataFrame | None" = None) -> list[SlideRow]:
    """The slides to convert: all of the folder, or those of a slide table. Raises RequestError."""
    missing = "no feature file (*.h5) in this folder, nor in h5_files/ or features_<encoder>/ in it"
    return requested_slides(Candidates(source.folder, list(source.paths), "one of feature files", missing), slides)


def convert_features(
    source: FeatureFolder,
    rows: Sequence[SlideRow],
    target: str,
    config: ConvertConfig,
    out: Path,
    listener: Listener = SILENT,
) -> Outcomes:
    """Convert the slides of `rows`, or the part of them that `config.part` names. Raises RequestError."""
    if target == "clam" and config.features_dtype == "float16":
        raise RequestError("--features-dtype float16: CLAM's files and models are float32; leave it out for --to clam")
    if config.clam_patches and not Path(config.clam_patches).is_dir():
        raise RequestError(f"--clam-patches {config.clam_patches}: no such folder")
    work = functools.partial(_convert_slide, source=source, layout=LAYOUTS[target], config=config, out=out)
    own = select_part(rows, config.part) if config.part else rows
    return run_slides(own, work, out, Execution(part=config.part), listener)


def _convert_slide(row: SlideRow, source: FeatureFolder, layout: Layout, config: ConvertConfig, out: Path) -> Outcome:
    converted = _converted(source.find(row.slide_id), row, layout, config)
    path = layout.path_in(out, converted)
    if path.resolve() == source.paths[row.slide_id].resolve():
        raise SlideError(f"{path}: would be replaced by its own conversion; choose another --out")
    with lock(path):
        if path.exists() and not config.overwrite:
            differing = layout.differences(path, converted)
            if differing:
                raise SlideError(
                    f"{path} exists and says something else ({'; '.join(differing)}); "
                    "choose another --out, or replace it with --overwrite"
                )
            return Outcome(row.slide_id, "skipped", "already done", len(converted.features))
        layout.write(path, converted)
    if len(converted.features) == 0:
        return Outcome(row.slide_id, "empty", "it has no patch")
    return Outcome(row.slide_id, "done", patches=len(converted.features))


def _converted(found: Found, row: SlideRow, layout: Layout, config: ConvertConfig) -> Embeddings:
    if config.clam_patches:
        found = with_patches(found, Path(config.clam_patches))
    known = joined(found.said, _given(row, config), found.path)
    if row.path is not None and any(getattr(known, n) is None for n in ("width_l0", "height_l0", "mpp_l0")):
        known = _with_slide(known, found, row.path)
    require(known, layout.needed, found, layout.name)
    made = embeddings(found, known, _digest(found))
    _require_inside(made, found.path)
    return replace(made, features=_in_dtype(found, layout, config.features_dtype))


def _given(row: SlideRow, config: ConvertConfig) -> Description:
    return Description(
        encoder=config.encoder or None,
        patch_size_px=config.patch_px,
        patch_size_l0=config.patch_size_l0,
        patch_size_um=config.patch_um,
        overlap_px=config.overlap_px,
        width_l0=config.width_l0,
        height_l0=config.height_l0,
        mpp_l0=config.mpp_given if row.mpp is None else row.mpp,
    )


def _with_slide(known: Description, found: Found, path: Path) -> Description:
    """`known` with the level-0 size, and the scale where nobody has said it, of the slide file itself."""
    slide = open_slide(path)
    try:
        width, height = slide.level_sizes[0]
        mpp_l0 = choose_scale(slide, "native", 1, 0).mpp_l0
    finally:
        slide.close()
    of_file = Description(width_l0=width, height_l0=height)
    if known.mpp_l0 is None and not math.isnan(mpp_l0):
        of_file = replace(of_file, mpp_l0=mpp_l0)
    return joined(known, of_file, found.path)


def _require_inside(made: Embeddings, path: Path) -> None:
    """Patches that do not touch the slide come from a wrong scale or another slide."""
    info, coords = made.info, made.coords_l0
    if not (len(coords) and info.width_l0 and info.height_l0):
        return
    if coords.min() + max(1, info.patch_size_l0) <= 0 or (coords.max(axis=0) >= (info.width_l0, info.height_l0)).any():
        raise SlideError(
            f"{path}: patches from {tuple(coords.min(axis=0).tolist())} to {tuple(coords.max(axis=0).tolist())} lie "
            f"outside a slide of {(info.width_l0, info.height_l0)} px; check --mpp-l0, and that it is this slide"
        )


def _in_dtype(found: Found, layout: Layout, wanted: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.floating]]":
    features = found.features
    if wanted == "keep":
        if layout.name != "clam" and features.dtype not in (np.float16, np.float32):
            raise SlideError(f"{found.path}: features are {features.dtype}; say --features-dtype float32 or float16")
        return features
    largest = float(np.finfo(wanted).max)
    if features.size and np.abs(features).max() > largest:
        raise SlideError(f"{found.path}: features reach {np.abs(features).max():.3g}, above {wanted}")
    return features.astype(wanted)


def _digest(found: Found) -> str:
    """`<layout>:<sha256>` of what was found: where a file of ours comes from."""
    coords = next((c for c in (found.coords_l0, found.coords_um, found.coords_scaled_px) if c is not None), None)
    sha = hashlib.sha256(f"{found.features.dtype}{found.features.shape};".encode())
    sha.update(np.ascontiguousarray(found.features).tobytes())
    if coords is not None:
        sha.update(np.ascontiguousarray(coords).tobytes())
    return f"{found.layout}:{sha.hexdigest()}"
