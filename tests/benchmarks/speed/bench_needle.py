"""CPU seconds and memory of one fit of `needle`, on features without anything in them, by number of slides.

    python tests/benchmarks/speed/bench_needle.py                    20 and 40 slides of 5,000 × 1,024
    python tests/benchmarks/speed/bench_needle.py --slides 1000      the whole of it; hours

Each number of slides has a process of its own; memory is its peak less that before the features were made, and holds
the features (float16). The slope between the first and the last says what a further patch costs.
"""

import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from mil.heads.head import HeadShape, TrainingSlides
from mil.heads.registry import build_head


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(slides: int, patches: int, dim: int) -> tuple[float, float]:
    """Seconds, GB."""
    torch.set_num_threads(1)
    before = _peak_gb()
    drawn = torch.Generator().manual_seed(0)
    features = tuple(torch.empty(patches, dim, dtype=torch.float16).normal_(generator=drawn) for _ in range(slides))
    ids = np.arange(slides).astype(str)
    head = build_head("needle", HeadShape(dim, 2, 16, 8, 0.0)).eval()
    start = time.process_time()
    head.fit(TrainingSlides(features, np.arange(slides) % 2, ids, ids), 1, np.random.default_rng(0))
    return time.process_time() - start, _peak_gb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=1024)
    given = parser.parse_args()
    results = []
    for slides in given.slides:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory = pool.apply(measure, (slides, given.patches, given.dim))
        results.append((slides * given.patches, seconds, memory))
        print(f"{slides} slides of {given.patches} × {given.dim}: {seconds:.0f} s, {memory:.2f} GB", flush=True)
    if len(results) > 1:
        (few, s, m), (many, t, n) = results[0], results[-1]
        cost, bytes_each = (t - s) / (many - few), (n - m) / (many - few) * 1e9
        print(f"a further patch: {1e6 * cost:.0f} µs, {bytes_each:.0f} bytes", flush=True)


if __name__ == "__main__":
    main()
