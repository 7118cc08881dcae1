"""Seconds and memory of PNG + GeoJSON + OME-TIFF of one slide with many patches, from stored scores.

    python bench_heatmaps.py [--patches 50000] [--forms png,geojson,ometiff]

The slide is white and costs nothing to read, so this is the drawing and the writing alone.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mil.maps.forms.registry import load_form

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from drawn_slides import White, attention, drawn_of

SIDE_L0 = 512


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=50_000)
    parser.add_argument("--forms", default="png,geojson,ometiff")
    arguments = parser.parse_args()
    n = arguments.patches
    across = math.ceil(math.sqrt(n))
    side = across * SIDE_L0
    coords = np.array([(i % across * SIDE_L0, i // across * SIDE_L0) for i in range(n)], np.int64)
    rng = np.random.default_rng(0)
    slide = attention(coords, rng.random(n), SIDE_L0, side, side)
    slide = replace(slide, patch_logits=rng.normal(size=(n, 2)).astype(np.float32))
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        drawn = drawn_of(slide, "logit", White(side, side, (1.0, 16.0, 64.0)))
        for form in arguments.forms.split(","):
            start, cpu = time.perf_counter(), time.process_time()
            load_form(form).write(path, drawn)
            seconds = time.perf_counter() - start
            total += seconds
            size = path.stat().st_size / 2**20
            print(f"{form:9}{seconds:7.2f} s  {time.process_time() - cpu:6.2f} s of CPU  {size:6.1f} MiB", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n:,} patches: {total:.2f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
