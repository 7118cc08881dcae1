"""A cohort of patch stores cut from phantoms, with the features of a real network: test material, no real slides."""

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from features.config import FeatureConfig
from features.feature_file import read_embeddings, write_embeddings
from features.pipeline import extract_features, find_stores
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.inputs import Inputs, Sources, load_inputs
from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, PatchStoreInfo, encode, write_store
from tiling.tissue.sharpness import sharpness
from tiling.tissue.tissue import TissueMap

SITES, SLIDES, PATCHES, SIDE = ("north", "east", "west"), 4, 3, 192
MANY = 4  # patches where nothing is embedded
ALL = MANY * SLIDES * len(SITES)


@functools.cache
def phantom_blocks(seed: int, scanner: str) -> np.ndarray:
    """Regions of tissue (2 * MANY, 512, 512, 3) at level 0, 0.25 µm a pixel; beginning a phantom takes the time."""
    phantom = Phantom(PhantomSpec(2048, 2048, seed, tumour=False, scanner=scanner))
    places = [(x, y, 512, 512) for y in range(0, 2048, 512) for x in range(0, 2048, 512)]  # what a phantom is drawn in
    found = []
    for number in np.random.default_rng(seed).permutation(len(places)):
        if len(found) < 2 * MANY and not phantom.is_glass(*places[number]):
            pixels = phantom.render(*places[number])
            found += [pixels] if pixels.mean() < 220 else []
    return np.stack(found)


def phantom_of(number: int, l0_px: int = 2 * SIDE) -> np.ndarray:
    """Patches (MANY, SIDE, SIDE, 3) of a slide; l0_px level-0 pixels are one side. Two slides share a phantom."""
    phantom, half = number % 3 + number // 6 * 3, number // 3 % 2
    blocks = phantom_blocks(phantom, "B" if SITES[number % 3] == "east" else "A")
    regions = blocks[half * MANY : (half + 1) * MANY, :l0_px, :l0_px]
    return np.stack([np.asarray(Image.fromarray(r).resize((SIDE, SIDE), Image.Resampling.BOX)) for r in regions])


def write_patches(path: Path, slide_id: str, patches: np.ndarray) -> None:
    info = PatchStoreInfo(
        **dict(slide_id=slide_id, fingerprint=f"{slide_id}:{patches.sum()}", width_l0=4096, height_l0=4096),
        **dict(mpp_l0=0.25, mpp_source="openslide", mpp_table=math.nan, mpp=0.5, patch_size_px=SIDE),
        **dict(patch_size_l0=2 * SIDE, overlap_px=0, level=0, backend="openslide", packages={}),
        **dict(config={"pixels": "zstd", "jpeg_quality": 90}, thumbnail_downsample=64.0),
    )
    scores = {name: np.ones(len(patches), np.float32) for name in AREA_SCORES}
    tissue = TissueMap(*np.ones((4, 64, 64), bool))
    made = (MadePatch(i, sharpness(patch), encode(patch, info)) for i, patch in enumerate(patches))
    coords = np.arange(2 * len(patches), dtype=np.int64).reshape(-1, 2) * 2 * SIDE
    write_store(path, info, Candidates(coords, scores), tissue, np.zeros((64, 64, 3), np.uint8), made)


def draw(folder: Path) -> Path:
    """The folder, with patches, features `f` and slides.csv."""
    rows = []
    for i in range(SLIDES * len(SITES)):
        site, name = SITES[i % 3], f"s{i:02d}"
        write_patches(folder / f"patches/{name}.zarr", name, phantom_of(i)[:PATCHES])
        rows.append((name, f"p{i:02d}", site, ("no", "yes")[i // 3 % 2]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "label"]).to_csv(folder / "slides.csv", index=False)
    config = FeatureConfig(encoder="efficientnet-lite0", device="cpu", precision="fp32")
    stores = find_stores(folder / "patches")
    outcomes = extract_features(stores, config, folder / "patches", folder / "f")
    assert outcomes.counts == {"done": SLIDES * len(SITES)}
    return folder


def with_other_patches_of_west(clean: Path, folder: Path, change: Callable[[np.ndarray, int], np.ndarray]) -> Path:
    """The clean cohort, but for the pixels of the site west: change(patches, number) of each slide."""
    (folder / "patches").mkdir(parents=True)
    shutil.copy(clean / "slides.csv", folder)
    for i, path in enumerate(sorted((clean / "f").glob("*.h5"))):
        store, embeddings = folder / f"patches/{path.stem}.zarr", read_embeddings(path)
        write_patches(store, path.stem, change(phantom_of(i), i) if SITES[i % 3] == "west" else phantom_of(i))
        info = replace(embeddings.info, store_digest=PatchStore(store).digest)
        write_embeddings(folder / "f" / path.name, replace(embeddings, info=info))
    return folder


def inputs_of(folder: Path, features: str = "f", **settings: object) -> Inputs:
    config = DiagnoseConfig(**{"bootstrap": 100, "folds": 3, "sample_patches": 20, "device": "cpu", **settings})
    return load_inputs(Sources(folder / features, folder / "slides.csv", "label", folder / "patches"), config)
