"""`tile-slides` against the loop that most labs run: one phantom slide, one thread each, same patches, grid at (0, 0).

Baseline: openslide.read_region → RGB → PIL resize → one HDF5 data set of raw pixels. It is given the coordinates,
so it makes no mask and no quality score, and it does not compress. Ours is the whole command's work: thumbnail,
mask, scores, JPEG, checksums and the store flushed to disk. Prints medians of interleaved runs and their ratio,
and the share of our time that JPEG decoding and encoding take, measured alone on the same patches: the floor.

    python tests/benchmarks/speed/bench_tiling.py [WIDTH HEIGHT [RUNS]]      default 40000 30000 3
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import openslide
import simplejpeg
from PIL import Image

from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.pipeline import tile_slide
from tiling.slides.tiff import TiffReader
from tiling.store.patches import PatchStore, encode


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


def codec_share(slide: Path, store: PatchStore, tile_slide_s: float, sample: int = 200) -> float:
    """JPEG decoding of the tiles and encoding of the patches, as a share of the time that tile_slide took."""
    reader, info = TiffReader(slide), store.info
    tile_px, reduction = 256, info.reduction
    span = info.patch_size_l0 // tile_px
    spent = []
    for index in np.linspace(0, len(store) - 1, sample).astype(int):
        x, y = store.coords_l0[index] // tile_px
        columns = -(-info.width_l0 // tile_px)
        tiles = [(y + row) * columns + x + column for row in range(span) for column in range(span)]
        page = reader._levels[0].page
        with slide.open("rb") as file:
            data = [(file.seek(page.dataoffsets[t]), file.read(page.databytecounts[t]))[1] for t in tiles]
        pixels = store.read([index])[0]
        start = time.perf_counter()
        for jpeg in data:
            simplejpeg.decode_jpeg(
                jpeg, "RGB", min_width=tile_px // reduction, min_height=tile_px // reduction, min_factor=reduction
            )
        encode(pixels, info)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) * len(store) / tile_slide_s


def main(width: int = 40_000, height: int = 30_000, runs: int = 3) -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # one core, hence one thread, for both
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder, "s.svs"), Path(folder)
        write_phantom(PhantomSpec(width_px=width, height_px=height, seed=0, tumour=True), slide)
        print(f"{width} × {height} px at 0.25 µm/px, 256-px JPEG tiles, {runs} interleaved runs")
        print(
            f"{'µm/px':>6} {'patches':>8} {'loop':>8} {'tile-slides':>12} {'ratio':>6} {'decode + encode':>16}",
            flush=True,
        )
        for mpp in (0.5, 0.25):
            config, row = TilingConfig(mpp=mpp, grid="origin", min_tissue=0.5), SlideRow("s", slide)
            kept = out / f"kept-{mpp}"
            tile_slide(row, config, kept)
            store = PatchStore(kept / "s.zarr")
            plan = (slide, store.coords_l0, store.info.patch_size_l0, 512, out / "b.h5")
            times = [
                (seconds(baseline, *plan), seconds(tile_slide, row, config, out / f"{mpp}-{run}"))
                for run in range(runs)
            ]
            theirs, ours = (statistics.median(t) for t in zip(*times, strict=True))
            share = codec_share(slide, store, ours)
            print(
                f"{mpp:>6} {len(store):>8} {len(store) / theirs:>6.0f}/s {len(store) / ours:>10.0f}/s "
                f"{theirs / ours:>6.1f} {share:>15.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
