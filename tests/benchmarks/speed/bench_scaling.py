"""`tile-slides` on two cores against one: threads inside one slide, and processes over slides.

The process is held to one core or two with the scheduler's affinity. Medians of interleaved runs. On a machine whose
two cores are the two threads of one, less than 2 is all there is: the last line shows what plain JPEG decoding in
two processes gains there.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from skimage.data import immunohistochemistry

from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.pipeline import tile_slide

RUNS = 3
CORES = sorted(os.sched_getaffinity(0))


def seconds(work: Callable[[], object], cores: int) -> float:
    os.sched_setaffinity(0, CORES[:cores])
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode_much(_: int) -> None:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(immunohistochemistry()), 90, "RGB")
    for _ in range(1000):
        simplejpeg.decode_jpeg(jpeg, "RGB")


def decode_twice() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(decode_much, range(2))


def main(width: int = 24_000, height: int = 18_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, config = Path(folder, "out"), TilingConfig(overwrite=True)
        slide = Path(folder, "s.svs")
        write_phantom(PhantomSpec(width_px=width, height_px=height, seed=0, tumour=True), slide)
        rows = [SlideRow(f"s{i}", slide) for i in range(8)]
        works: dict[str, Callable[[], object]] = {
            "threads, one slide": lambda: tile_slide(rows[0], config, out),
            "processes, eight slides": lambda: tile_slides(rows, config, out),
            "JPEG decoding alone, two processes": decode_twice,
        }
        for name, work in works.items():
            work()
            times = [(seconds(work, 1), seconds(work, 2)) for _ in range(RUNS)]
            one, two = (statistics.median(t) for t in zip(*times, strict=True))
            print(f"{name:36} {one:6.2f} s on one core, {two:6.2f} s on two: {one / two:.2f} times", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
