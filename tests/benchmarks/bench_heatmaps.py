"""Seconds and memory of PNG + GeoJSON + OME-TIFF of one slide with many patches, from stored scores.

    python bench_heatmaps.py [--patches 50000] [--forms png,geojson,ometiff]

The slide is white and costs nothing to read, so this is the drawing and the writing alone.
"""

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from mil.maps.forms.geojson import contours, squares, write_geojson
from mil.maps.forms.ometiff import write_ometiff
from mil.maps.forms.png import write_png
from mil.maps.scores import patch_scores
from mil.run.attention import SlideAttention

SIDE_L0 = 512


class White:
    backend, mpp_source, path = "memory", "memory", Path("white")
    mpp = (0.25, 0.25)

    def __init__(self, side):
        self.downsamples = (1.0, 16.0, 64.0)
        self.level_sizes = tuple((math.ceil(side / d),) * 2 for d in self.downsamples)

    def read(self, level, x, y, width, height, reduction=1):
        return np.full((height, width, 3), 255, np.uint8)


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
    attention = rng.random(n).astype(np.float32)
    slide = SlideAttention(
        attention=attention / attention.sum(), patch_logits=rng.normal(size=(n, 2)).astype(np.float32), coords=coords,
        slide_id="s", label="tumour", classes=("normal", "tumour"), positive="tumour",
        probabilities=np.array([0.1, 0.9]), patch_size_l0=SIDE_L0, overlap_px=0, patch_size_px=256,
        width_l0=side, height_l0=side, mpp_l0=0.25,
    )  # fmt: skip
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        scores = patch_scores(slide, "logit")
        forms = {
            "png": lambda: write_png(path, slide, scores, White(side), None, 0.55, {}),
            "geojson": lambda: write_geojson(path, squares(slide, scores), {}),
            "contours": lambda: write_geojson(path, contours(slide, scores), {}),
            "ometiff": lambda: write_ometiff(path, slide, scores, {}),
        }
        for form in arguments.forms.split(","):
            start, cpu = time.perf_counter(), time.process_time()
            forms[form]()
            seconds = time.perf_counter() - start
            total += seconds
            size = path.stat().st_size / 2**20
            print(f"{form:9}{seconds:7.2f} s  {time.process_time() - cpu:6.2f} s of CPU  {size:6.1f} MiB", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n:,} patches: {total:.2f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
