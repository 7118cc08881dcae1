"""Time of diagnose-cohort on 500 slides of 1,000 patches, two cores, and its largest memory.

The command runs as its own process. `bench_diagnosis.py [FOLDER [SLIDES]]` works in FOLDER, best on a local disk, and
needs 1.5 GB there. 5 % of the patches of positive slides are shifted; slides come from four sites.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from features.feature_file import EmbeddingInfo, Embeddings, write_embeddings

SLIDES = int(sys.argv[2]) if len(sys.argv) > 2 else 500
PATCHES, DIM, WITNESSES, THREADS = 1000, 1280, 50, 2


def write_cohort(folder: Path) -> None:
    """Feature files and labels.csv."""
    rng = np.random.default_rng(0)
    ids, sites = [f"s{i:03d}" for i in range(SLIDES)], rng.choice(list("ABCD"), SLIDES)
    of_site = {site: rng.normal(size=DIM) * 0.1 for site in "ABCD"}
    coords = np.stack([np.arange(PATCHES) % 32, np.arange(PATCHES) // 32], axis=1) * 512
    for i, name in enumerate(ids):
        features = rng.standard_normal((PATCHES, DIM), dtype=np.float32) + of_site[sites[i]].astype(np.float32)
        features += (0.1 * rng.standard_normal(DIM)).astype(np.float32)  # slides differ, as real ones do
        features[: WITNESSES * (i % 2), :8] += 1.5
        info = EmbeddingInfo(
            slide_id=name, store_digest=f"d{i}", encoder="noise", weights="default", weights_sha256="0", input_px=224,
            normalisation="none", precision="fp32", patch_size_px=256, patch_size_l0=512, overlap_px=0,
            width_l0=2**15, height_l0=2**15, mpp_l0=0.25, mpp=0.5,
        )  # fmt: skip
        write_embeddings(folder / f"{name}.h5", Embeddings(features.astype(np.float16), coords, info))
    table = pd.DataFrame({"slide_id": ids, "label": np.arange(SLIDES) % 2, "site": sites})
    table.to_csv(folder / "labels.csv", index=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder, out = Path(name, "features"), Path(name, "diagnosis")
        folder.mkdir()
        write_cohort(folder)
        command = "import resource; from mil.cli.diagnose import main\n"
        command += "try: main()\nfinally: own = resource.getrusage(resource.RUSAGE_SELF); "
        command += "print('peak', own.ru_maxrss, own.ru_utime + own.ru_stime)"
        began = last = time.perf_counter()
        stage = ""
        with subprocess.Popen(
            [sys.executable, "-c", command, folder, "--labels", folder / "labels.csv", "--target", "label",
             "--out", out, "--device", "cpu"],
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS)}, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter()
                started = re.match(r"\[\d+/\d+\] (.*): 0%", line)
                if started:
                    print(f"{now - last:7.1f} s  {stage or 'loading'}", flush=True)
                    stage, last = started[1], now
                elif line.startswith("peak"):
                    seconds = f"{now - began:7.1f} s  in all, {float(line.split()[2]):.0f} s of one core"
                    print(f"{now - last:7.1f} s  {stage}\n{seconds}", flush=True)
                    print(f"{int(line.split()[1]) / 2**20:7.2f} GiB largest memory")
        for found in json.loads((out / "diagnosis.json").read_text())["findings"]:
            print(f"{found['severity']:8}{found['title']}: {found['verdict']}")
