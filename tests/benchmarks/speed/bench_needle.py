"""CPU seconds and memory of one fit of `needle`, on features without anything in them, by number of slides.

    python tests/benchmarks/speed/bench_needle.py                                 20, 60 and 180 slides of 5,000 × 1,024
    python tests/benchmarks/speed/bench_needle.py --slides 1000 --patches 500     many slides of fewer patches
    python tests/benchmarks/speed/bench_needle.py --slides 1000                   the whole of it; a third of an hour

Each number of slides has a process of its own, with one thread. Features (float16) are mapped from a file, as train-mil
may; it holds 20 slides, and further slides are other stretches of it. Memory is the peak of the process less that
before the fit, and so holds the pages of this one file, 0.2 GB of 20 slides of 5,000 × 1,024.
"""

import argparse
import itertools
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mil.heads.head import HeadShape, TrainingSlides
from mil.heads.registry import build_head

IN_FILE = 20  # slides


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _write(path: Path, patches: int, dim: int) -> None:
    drawn = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        for _ in range(IN_FILE):
            file.write(torch.empty(patches, dim, dtype=torch.float16).normal_(generator=drawn).numpy().tobytes())


def measure(path: Path, slides: int, patches: int, dim: int) -> tuple[float, float]:
    """Seconds, GB."""
    torch.set_num_threads(1)
    rows = IN_FILE * patches
    mapped = torch.from_file(str(path), shared=True, size=rows * dim, dtype=torch.float16).view(rows, dim)
    further = np.random.default_rng(0).integers(rows - patches, size=max(0, slides - IN_FILE))
    starts = [*range(0, min(slides, IN_FILE) * patches, patches), *further.tolist()]
    features = tuple(mapped[start : start + patches] for start in starts)
    ids = np.arange(slides).astype(str)
    head = build_head("needle", HeadShape(dim, 2, 16, 8, 0.0)).eval()
    before, start = _peak_gb(), time.process_time()
    head.fit(TrainingSlides(features, np.arange(slides) % 2, ids, ids), 1, np.random.default_rng(0))
    return time.process_time() - start, _peak_gb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[20, 60, 180])
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=1024)
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.f16"
        _write(path, given.patches, given.dim)
        for slides in given.slides:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, memory = pool.apply(measure, (path, slides, given.patches, given.dim))
            each = 1e6 * seconds / (slides * given.patches)
            results.append((slides * given.patches, seconds, memory))
            print(f"{slides} slides of {given.patches} × {given.dim}: {seconds:.0f} s, {memory:.2f} GB,", end=" ")
            print(f"{each:.0f} µs a patch", flush=True)
    for (few, s, m), (many, t, n) in itertools.pairwise(results):
        cost, bytes_each = (t - s) / (many - few), (n - m) / (many - few) * 1e9
        print(f"from {few:,} patches to {many:,}: {1e6 * cost:.0f} µs, {bytes_each:.0f} bytes each", flush=True)


if __name__ == "__main__":
    main()
