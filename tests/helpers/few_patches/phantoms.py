"""Phantom slides with a lesion of 0.2 % of their tissue, in patches of 224 px by EfficientNet-Lite0; a bag is a slide.

A patch is rare where the lesion covers a quarter of it or more. Scanners do not go with the label.
"""

import json
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from features.feature_file import Embeddings, read_embeddings
from few_patches.bags import Bags
from few_patches.ucsb import command
from mil.maps.lesions import LESION_SHARE
from tiling.phantom.phantom import PhantomSpec, write_phantom

SLIDES, SIDE_PX, SHARE = 32, 6144, 0.002


def drawn(draw: int, folder: Path) -> Bags:
    """Slides and features are looked for in the folder, and made where they are not there."""
    slides, patches, features = (folder / f"{draw}" / name for name in ("slides", "patches", "features"))
    slides.mkdir(parents=True, exist_ok=True)
    rng, ids = np.random.default_rng(draw), [f"s{i:02d}" for i in range(SLIDES)]
    for i, name in enumerate(ids):
        scanner = "A" if rng.random() < 0.5 else "B"
        spec = PhantomSpec(SIDE_PX, SIDE_PX, 1000 * draw + i, i % 2 == 1, scanner, lesion_fraction=SHARE)
        if not (slides / f"{name}.geojson").exists():
            phantom = write_phantom(spec, slides / f"{name}.svs")
            (slides / f"{name}.geojson").write_text(json.dumps(phantom.lesion_geojson()))
    command("tile-slides", slides, "--out", patches, "--mpp", 0.25, "--patch-px", 224)
    command("extract-features", patches, "--out", features, "--encoder", "efficientnet-lite0")
    embedded = [read_embeddings(features / f"{name}.h5") for name in ids]
    rare = [_lesion(e, slides / f"{name}.geojson") for e, name in zip(embedded, ids, strict=True)]
    return Bags([e.features.astype(np.float32) for e in embedded], rare, np.arange(SLIDES) % 2)


def _lesion(embedded: Embeddings, annotation: Path) -> NDArray[np.bool_]:
    """(N,)"""
    outlines = json.loads(annotation.read_text())["features"]
    region = shapely.union_all([shapely.geometry.shape(outline["geometry"]) for outline in outlines])
    side = embedded.info.patch_size_l0
    boxes = shapely.box(*embedded.coords_l0.T, *(embedded.coords_l0 + side).T)
    covered: NDArray[np.bool_] = shapely.area(shapely.intersection(boxes, region)) >= LESION_SHARE * side**2
    return covered
