"""Largest memory and time of train-mil on 3 GB of features, held in memory and mapped from a scratch file.

Both runs are commands of their own, on one thread; what they write must be equal. `bench_memory.py [FOLDER [SLIDES]]`
works in FOLDER, best on a local disk, and needs 6 GB there.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from features.feature_file import EmbeddingInfo, Embeddings, write_embeddings

SLIDES = int(sys.argv[2]) if len(sys.argv) > 2 else 300
PATCHES, DIM = 5000, 1024
ARGUMENTS = ["--target", "label", "--folds", "2", "--epochs", "1", "--bootstrap", "100", "--device", "cpu"]


def write_cohort(folder: Path) -> int:
    """Feature files and labels.csv; the bytes of all features."""
    rng = np.random.default_rng(0)
    for i in range(SLIDES):
        features = rng.standard_normal((PATCHES, DIM), dtype=np.float32).astype(np.float16)
        info = EmbeddingInfo(
            slide_id=f"s{i:03d}", store_digest=f"d{i}", encoder="noise", weights="random", weights_sha256="0",
            input_px=224, normalisation="none", precision="fp32", patch_size_px=224, patch_size_l0=224, overlap_px=0,
            width_l0=10**5, height_l0=10**5, mpp_l0=0.5, mpp=0.5,
        )  # fmt: skip
        coords = np.stack([np.arange(PATCHES) % 71, np.arange(PATCHES) // 71], axis=1) * 224
        write_embeddings(folder / f"s{i:03d}.h5", Embeddings(features, coords, info))
    ids = [f"s{i:03d}" for i in range(SLIDES)]
    pd.DataFrame({"slide_id": ids, "label": np.arange(SLIDES) % 2}).to_csv(folder / "labels.csv", index=False)
    return SLIDES * PATCHES * DIM * 2


def largest_memory(folder: Path, out: Path, memory: str) -> tuple[float, float]:
    """Peak resident memory in GB, mapped pages that are in memory among it, and seconds of the command."""
    command = "import resource, sys; from mil.cli.train import main; sys.argv[0] = 'train-mil'\n"
    command += "try: main()\nfinally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", command, folder, "--labels", folder / "labels.csv", "--out", out, "--memory", memory,
         *ARGUMENTS],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return int(done.stdout.split()[-1]) / 2**20 * 1.073741824, seconds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name, "features")
        nbytes = write_cohort(folder)
        for memory in ("mapped", "ram"):
            gigabytes, seconds = largest_memory(folder, Path(name, memory), memory)
            print(f"{nbytes / 1e9:.2f} GB of features, {memory}: peak {gigabytes:.2f} GB, {seconds:.0f} s", flush=True)
        same = all(
            Path(name, "ram", file).read_bytes() == Path(name, "mapped", file).read_bytes()
            for file in ("predictions.csv", "metrics.json", "fold-0/checkpoint.safetensors")
        )
        print("the same bytes" if same else "DIFFERENT RESULTS")
