"""Slides tiled again in small steps and embedded again, for a map that is finer than its patches."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from shapely import box, union_all
from shapely.geometry import mapping

from features.config import FeatureConfig
from features.feature_file import EmbeddingInfo, Embeddings
from features.interop.reader import open_features
from mil.maps.config import HeatmapConfig
from tiling.config import TilingConfig
from tiling.jobs.atomic import write_json
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.listener import SILENT, Listener
from tiling.manifest import SlideRow


def make_finer(
    features: Path, rows: Sequence[SlideRow], config: HeatmapConfig, out: Path, listener: Listener = SILENT
) -> Path:
    """The folder of feature files, under `out`, of the same tissue in steps of a patch's side / `config.finer`.

    Scale, patch size, encoder and input size are those of `features`. What is there already is not made again; a slide
    that fails has no file. Raises RequestError where the slides' features are not of one kind.
    """
    from features.encoders.int8 import FILE as INT8_FILE  # torch
    from features.pipeline import extract_features, find_stores
    from tiling.all_slides import tile_slides

    infos, masked, steps = {}, [], config.finer
    for row in rows:
        try:
            embeddings = open_features(features).read(row.slide_id)
        except SlideError:  # is said when the slide is drawn
            continue
        infos[row.slide_id] = embeddings.info
        corner_l0 = tuple(embeddings.coords_l0[0].tolist()) if len(embeddings.coords_l0) else None
        mask = _write_mask(out / "masks" / f"{row.slide_id}.geojson", embeddings)
        masked.append(replace(row, mask=mask, corner_l0=corner_l0))
    kinds = {(i.patch_size_px, i.encoder, i.weights, i.input_px, i.precision) for i in infos.values()}
    if len(kinds) != 1:
        raise RequestError(f"--finer: {features} has features of {len(kinds)} kinds for these slides, expected one")
    [(patch_px, encoder, made_with, input_px, precision)] = kinds
    if patch_px % steps:
        raise RequestError(f"--finer {steps}: a patch of {patch_px} px cannot be moved by so many equal steps")
    overlap_px, least = patch_px - patch_px // steps, 1 - 1 / steps  # none reaches out by more than a step
    for mpp in dict.fromkeys(_scale(info) for info in infos.values()):
        tiling = TilingConfig(
            mpp=mpp,
            patch_px=patch_px,
            overlap_px=overlap_px,
            min_tissue=least,
            workers=config.workers,
            scheduler=config.scheduler,
        )
        of_scale = [row for row in masked if _scale(infos[row.slide_id]) == mpp]
        tile_slides(of_scale, tiling, out / "patches", listener.stage("tile-slides"))
    settings: dict[str, Any] = {"encoder": encoder, "weights": config.weights or made_with, "input_px": input_px}
    settings |= {"device": config.device, "scheduler": config.scheduler}
    if precision == "int8":
        settings |= {"engine": "openvino", "device": "cpu", "int8_network": str(features / INT8_FILE)}
    extraction = FeatureConfig(**settings, precision=cast(Any, precision))
    stores = [row for row in find_stores(out / "patches") if row.slide_id in infos]
    to_hear = listener.stage("extract-features")
    extract_features(stores, extraction, out / "patches", out / "features", listener=to_hear)
    return out / "features"


def _scale(info: EmbeddingInfo) -> float | Literal["native"]:
    return "native" if math.isnan(info.mpp) else info.mpp


def _write_mask(path: Path, embeddings: Embeddings) -> Path:
    """What the patches cover, as tissue for `tile-slides`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners, side = embeddings.coords_l0, embeddings.info.patch_size_l0
    covered = union_all(box(corners[:, 0], corners[:, 1], corners[:, 0] + side, corners[:, 1] + side))
    feature = {"type": "Feature", "properties": {}, "geometry": mapping(covered)}
    write_json(path, {"type": "FeatureCollection", "features": [feature]})
    return path
