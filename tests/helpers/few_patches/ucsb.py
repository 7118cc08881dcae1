"""Patches of malignant images among those of benign ones, from the same source slide (UCSB breast, EfficientNet-Lite0).

A benign image is two bags, its left half and its right half. One of the two gets `planted` patches of malignant images,
the other as many of another benign image: that some patches are of another image than the rest says nothing. Not every
patch of a malignant image shows cancer. Source slides are kept whole in folds.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from real_data import DATA
from ucsb_breast import unpack

from features.feature_file import Embeddings, read_embeddings
from few_patches.bags import Bags

PATCH_PX = 64  # 168 patches an image


def command(name: str, *arguments: object) -> None:
    """Run a command of this installation; CalledProcessError, after its own words, if it fails."""
    subprocess.run([Path(sys.executable).parent / name, *map(str, arguments)], check=True, stdout=sys.stderr)


@cache
def _embedded(folder: Path) -> tuple[pd.DataFrame, dict[str, Embeddings]]:
    """The slide table, and the patches of each image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table, patches, features = unpack(DATA / "ucsb_breast", folder / "images"), folder / "patches", folder / "features"
    how = ["--mpp", "native", "--patch-px", PATCH_PX, "--tissue", "all", "--grid", "origin"]
    command("tile-slides", table, "--out", patches, *how)
    command("extract-features", patches, "--out", features, "--encoder", "efficientnet-lite0", "--input-px", 224)
    rows = pd.read_csv(table)
    return rows, {i: read_embeddings(features / f"{i}.h5") for i in rows["slide_id"]}


def plant(planted: int, draw: int, folder: Path) -> Bags:
    """Features are looked for in the folder, and made where they are not there."""
    rng, (rows, images) = np.random.default_rng(draw), _embedded(folder)
    tiles, truths, labels, sources = [], [], [], []
    for source, of_source in rows.groupby("patient_id"):
        malignant = of_source.loc[of_source["diagnosis"] == "malignant", "slide_id"]
        if malignant.empty:
            continue
        cancer = rng.permutation(np.concatenate([images[i].features for i in malignant]))
        benign = of_source.loc[of_source["diagnosis"] == "benign", "slide_id"].tolist()
        held, halves = [], []
        for image in benign:
            order = rng.permutation(len(images[image].features))
            held.append(images[image].features[order[:planted]])
            rest = order[planted:]
            halves.append(np.array_split(rest[np.argsort(images[image].coords_l0[rest, 0], kind="stable")], 2))
        for n, image in enumerate(benign):
            for label, half in zip(rng.permutation([0, 1]), halves[n], strict=True):
                foreign = cancer[n * planted : (n + 1) * planted] if label else held[n - 1]
                own = images[image].features[rng.permutation(half)[planted:]]
                tiles.append(np.concatenate([foreign, own]).astype(np.float32))
                truths.append(np.arange(len(tiles[-1])) < planted * label)
                labels.append(label)
                sources.append(source)
    return Bags(tiles, truths, np.array(labels), np.array(sources, dtype=str))
