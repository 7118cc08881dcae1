"""STAMP 1's tile features, as its `preprocess` wrote them (layout of commits 0d4cef0, September 2023, to v1.1.1).

`<extractor>/<slide>.h5`, attribute `extractor` and no other:
  feats      (N, D) float16
  coords     (N, 2) int64, tile corners in pixels of the slide as it was scaled to the tiles' µm per pixel
  augmented  (N,) bool, True for a row that repeats a tile with changed colours: no tile of its own, so left out

By default a tile was 224 px and 256 µm wide, but both were settings, and neither these nor the slide's scale are in
the file. Tiles lie edge to edge from the slide's corner, so every coordinate is a multiple of the tile's side.

Tiles were taken row by row. Those of a slide were written as (x, y), those of a slide's cached picture as (row,
column), and nothing else tells the two apart: the number that never falls from one row to the next is y.
"""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from features.feature_file import opened
from features.interop.description import Description, Found
from features.interop.layout_file import data_set, require_rows
from tiling.jobs.errors import SlideError

AUGMENTED = "augmented"


def is_stamp_1(file: h5py.File) -> bool:
    return "feats" in file and AUGMENTED in file and "stamp_version" not in file.attrs and "unit" not in file.attrs


def read_stamp_1(path: Path, layout: str) -> Found:
    """Raises SlideError for a file that is damaged, or whose coordinates are not those of tiles taken row by row."""
    with opened(path) as file:
        features, coords = data_set(file, "feats", path), data_set(file, "coords", path)
        augmented = data_set(file, AUGMENTED, path)
        extractor = file.attrs.get("extractor")
    if augmented.dtype != bool or augmented.shape != features.shape[:1]:
        raise SlideError(
            f"{path}: {AUGMENTED} is {augmented.dtype} {augmented.shape}, expected one truth value for each of "
            f"{len(features)} rows of feats"
        )
    coords = coords[~augmented] if len(coords) == len(augmented) else coords
    features = features[~augmented]
    require_rows(features, coords, path)
    if coords.dtype.kind not in "iu":
        raise SlideError(f"{path}: coords are {coords.dtype}, expected whole pixels (STAMP 1)")
    said = Description(encoder=None if extractor is None else str(extractor), overlap_px=0)
    return Found(path, layout, features, None, None, said, coords_scaled_px=_x_first(coords.astype(np.int64), path))


def _x_first(coords: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    first_is_y, second_is_y = (bool((np.diff(column) >= 0).all()) for column in coords.T)
    if first_is_y == second_is_y and not np.array_equal(coords, coords[:, ::-1]):
        raise SlideError(
            f"{path}: its rows are not in the order in which STAMP 1 took tiles, so which of `coords` is x cannot be "
            "told; extract it again with `stamp preprocess`"
        )
    return coords[:, ::-1].copy() if first_is_y else coords
