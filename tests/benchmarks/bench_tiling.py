"""`tile-slides` against the loop that most labs run, on one phantom slide, one process, same patches.

Baseline: openslide.read_region → RGB → PIL resize → one HDF5 data set of raw pixels. It is given the coordinates,
so it makes no mask and no quality score, and it does not compress. Ours is the whole command's work: thumbnail,
mask, scores, JPEG, checksums and the store flushed to disk. Prints medians of interleaved runs and their ratio.
"""

import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import openslide
from PIL import Image

from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.patches import PatchStore
from tiling.phantom import PhantomSpec, write_phantom
from tiling.pipeline import tile_slide

RUNS = 5


def baseline(slide: Path, coords_l0: np.ndarray, size_l0: int, side: int, out: Path) -> None:
    with openslide.OpenSlide(slide) as opened, h5py.File(out, "w") as file:
        patches = file.create_dataset("patches", (len(coords_l0), side, side, 3), "uint8", chunks=(1, side, side, 3))
        for i, corner in enumerate(coords_l0.tolist()):
            region = opened.read_region(tuple(corner), 0, (size_l0, size_l0)).convert("RGB")
            patches[i] = np.asarray(region.resize((side, side), Image.Resampling.BILINEAR))


def seconds(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder, "s.svs"), Path(folder)
        write_phantom(PhantomSpec(width_px=16_000, height_px=12_000, seed=0, tumour=True), slide)
        print(f"{'µm/px':>6} {'patches':>8} {'baseline':>12} {'tile-slides':>12} {'ratio':>6}")
        for mpp in (0.5, 0.25):
            config = TilingConfig(mpp=mpp, overwrite=True)
            row = SlideRow("s", slide)
            tile_slide(row, config, out)
            store = PatchStore(out / "s.zarr")
            plan = (slide, store.coords_l0, store.info.patch_size_l0, 512, out / "b.h5")
            times = [(seconds(baseline, *plan), seconds(tile_slide, row, config, out)) for _ in range(RUNS)]
            theirs, ours = (statistics.median(t) for t in zip(*times, strict=True))
            rates = (len(store) / theirs, len(store) / ours)
            print(f"{mpp:>6} {len(store):>8} {rates[0]:>10.0f}/s {rates[1]:>10.0f}/s {theirs / ours:>6.2f}")


if __name__ == "__main__":
    main()
