"""Reading patches from a store in random order, as training on pixels does, against reading them in order.

Batches of 64 patches of 512 px, decoded, from a JPEG store of 2,048; medians of interleaved runs, in patches per
second: ours in order, ours in random order, zarr by slices (in order) and zarr by fancy indexing (random order).
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from tiling.config import TilingConfig
from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, PatchStoreInfo, encode, write_store
from tiling.tissue.tissue import TissueMap

COUNT, BATCH, RUNS, SIDE = 2048, 64, 5, 512


def make_store(path: Path) -> PatchStore:
    phantom = Phantom(PhantomSpec(width_px=16 * SIDE, height_px=16 * SIDE, seed=0, tumour=False))
    info = PatchStoreInfo(
        slide_id="s", fingerprint="f", width_l0=16 * SIDE, height_l0=16 * SIDE, mpp_l0=0.25, mpp_source="openslide",
        mpp_table=0.25, mpp=0.25, patch_size_px=SIDE, patch_size_l0=SIDE, overlap_px=0, level=0, backend="tiff",
        config=TilingConfig().content(), packages={}, thumbnail_downsample=32.0,
    )  # fmt: skip
    corners = [(x * SIDE, y * SIDE) for y in range(16) for x in range(16)]
    encoded = [encode(phantom.render(x, y, SIDE, SIDE), info) for x, y in corners]
    patches = (MadePatch(i, 1.0, encoded[i % len(encoded)]) for i in range(COUNT))
    nothing = np.zeros((2, 2), bool)
    areas = {name: np.ones(COUNT, np.float32) for name in AREA_SCORES}
    coords = np.zeros((COUNT, 2), np.int64)
    thumbnail = np.zeros((2, 2, 3), np.uint8)
    write_store(path, info, Candidates(coords, areas), TissueMap(*[nothing] * 4), thumbnail, patches)
    return PatchStore(path)


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder, "s.zarr"))
        array = zarr.open_group(Path(folder, "s.zarr"), mode="r")["patches"]
        ways = {
            "ours, in order": lambda i: store.read(range(i, i + BATCH)),
            "ours, random": lambda i: store.read(rng.choice(COUNT, BATCH, replace=False)),
            "ours, random, compressed": lambda i: store.read_encoded(rng.choice(COUNT, BATCH, replace=False)),
            "zarr slices, in order": lambda i: array[i : i + BATCH],
            "zarr fancy, random": lambda i: array.oindex[np.sort(rng.choice(COUNT, BATCH, replace=False))],
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for run in range(RUNS):
            for name, read in ways.items():
                start = time.perf_counter()
                read(run * BATCH)
                seconds[name].append(time.perf_counter() - start)
        base = statistics.median(seconds["ours, in order"])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"{name:26} {BATCH / median:8.0f}/s {base / median:8.2f} of in order")


if __name__ == "__main__":
    main()
