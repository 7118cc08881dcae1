"""`extract-features` on the CPU: the forward path against plain torch, and the whole command against the forward path.

Plain: torchvision's ResNet-50 in fp32, batches of 8 on all cores, normalised by torchvision, patches in memory.
Forward path: ours on the same patches in memory, in fp32 and in the precision that `auto` takes here.
Command: ours from JPEG patch stores to feature files flushed to disk, with checks, locks and by-products, without the
start of the process. Small slides: two of 18 patches in memory at once, against one of 36. Medians of interleaved runs,
and ratios, by the clock and by the cores' time, which a busy machine disturbs less. ResNet-50 with random weights at
512 px.

    python tests/benchmarks/speed/bench_features.py [PATCHES [RUNS]]      default 32 3, about five minutes
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from torchvision.transforms.v2 import Normalize

from features.config import EmbedSettings, FeatureConfig
from features.embed.arithmetic import exact_arithmetic
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder
from features.encoders import load_encoder
from features.pipeline import extract_features, find_stores
from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.store.patches import PatchStore

SLIDES = 2


def plain(model: torch.nn.Module, patches: np.ndarray) -> None:
    normalise = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        for start in range(0, len(patches), 8):
            model(normalise(torch.from_numpy(patches[start : start + 8]).permute(0, 3, 1, 2) / 255).contiguous())


def forward(embedder: Embedder, patches: np.ndarray) -> None:
    with exact_arithmetic(embedder.lanes):
        embedder.embed(in_memory(patches))


def small_slides(embedder: Embedder, slides: list[np.ndarray]) -> None:
    with exact_arithmetic(embedder.lanes), ThreadPoolExecutor(len(slides)) as threads:
        list(threads.map(lambda patches: embedder.embed(in_memory(patches)), slides))


def command(stores: Path, out: Path, precision: str) -> None:
    config = FeatureConfig(encoder="resnet50", weights="random", device="cpu", precision=precision)
    shutil.rmtree(out, ignore_errors=True)
    assert extract_features(find_stores(stores), config, stores, out).counts == {"done": SLIDES}


def main(count: int = 32, runs: int = 3) -> None:
    encoder = load_encoder("resnet50", "random")
    model = zoo.resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(encoder.unmerged.state_dict())
    model.eval()
    auto = Embedder(encoder, EmbedSettings(device="cpu")).precision
    with tempfile.TemporaryDirectory() as folder:
        stores = Path(folder, "patches")
        slide = Path(folder, "s.svs")
        side = 512 * round(np.sqrt(count / SLIDES))
        write_phantom(PhantomSpec(width_px=side, height_px=side, mpp=0.5, seed=0, tumour=True), slide)
        tile_slides([SlideRow(f"s{i}", slide) for i in range(SLIDES)], TilingConfig(tissue="all"), stores)
        patches = np.concatenate([PatchStore(p).read(range(len(PatchStore(p)))) for p in sorted(stores.glob("*.zarr"))])
        works = {"plain torch, fp32": lambda: plain(model, patches)}
        for precision in dict.fromkeys(("fp32", auto)):
            embedder = Embedder(encoder, EmbedSettings(device="cpu", precision=precision))
            works[f"forward path, {precision}"] = lambda embedder=embedder: forward(embedder, patches)
            out = Path(folder, precision)
            works[f"command, {precision}"] = lambda precision=precision, out=out: command(stores, out, precision)
        embedder = Embedder(encoder, EmbedSettings(device="cpu", precision=auto))
        few = np.resize(patches, (36, *patches.shape[1:]))
        works["one slide of 36"] = lambda: small_slides(embedder, [few])
        works["two slides of 18"] = lambda: small_slides(embedder, [few[:18], few[18:]])
        seconds: dict[str, list[float]] = {name: [] for name in works}
        core_seconds: dict[str, list[float]] = {name: [] for name in works}
        for run in range(runs + 1):  # the first warms up
            for name, work in works.items():
                start, cores_start = time.perf_counter(), time.process_time()
                work()
                if run:
                    seconds[name].append(time.perf_counter() - start)
                    core_seconds[name].append(time.process_time() - cores_start)
    cores = len(os.sched_getaffinity(0))
    print(f"ResNet-50, {len(patches)} patches of 512 px, {cores} cores, {runs} interleaved runs, auto is {auto}")
    took = {name: (statistics.median(seconds[name]), statistics.median(core_seconds[name])) for name in works}
    for name, (by_clock, by_cores) in took.items():
        print(f"{name:24} {by_clock:7.2f} s, {by_cores:7.2f} s of cores")
    pairs = {f"command, {precision}": f"forward path, {precision}" for precision in dict.fromkeys(("fp32", auto))}
    pairs |= {path: "plain torch, fp32" for path in list(pairs.values())} | {"two slides of 18": "one slide of 36"}
    for name, of in pairs.items():
        by_clock, by_cores = (there / here for there, here in zip(took[of], took[name], strict=True))
        print(f"{name} runs at {by_clock:.2f} of the speed of {of}, {by_cores:.2f} by the time of cores")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
