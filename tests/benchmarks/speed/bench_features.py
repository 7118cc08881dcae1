"""`extract-features` on the CPU: the forward path against plain torch, and the whole command against the forward path.

Plain: torchvision's ResNet-50 in fp32, batches of 8 on all cores, normalised by torchvision, patches in memory.
Forward path: ours on the same patches in memory, in fp32 and in the precision that `auto` takes here.
Command: ours from a JPEG patch store to a feature file flushed to disk, with checks, locks and by-products, without the
start of the process. Both of a slide and of one three times as large: their difference is the time of the patches, and
what is left of the command is its start. Small slides: two of 18 patches in memory at once, against one of 36. Medians
of interleaved runs, and ratios, by the clock and by the cores' time, which a busy machine disturbs less. ResNet-50 with
random weights at 512 px.

    python tests/benchmarks/speed/bench_features.py [PATCHES [RUNS]]      default 64 3, about seven minutes
"""

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

LARGER = 3  # times the patches


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
    assert extract_features(find_stores(stores), config, stores, out).counts == {"done": 1}


def tiled(folder: Path, count: int) -> tuple[Path, np.ndarray]:
    """The folder of the store of one slide, and its patches (N, P, P, 3); N: about `count`."""
    columns = round(np.sqrt(count))
    spec = PhantomSpec(width_px=512 * columns, height_px=512 * (count // columns), mpp=0.5, seed=0, tumour=True)
    folder.mkdir()
    write_phantom(spec, folder / "s.svs")
    tile_slides([SlideRow("s", folder / "s.svs")], TilingConfig(tissue="all"), folder / "patches")
    store = PatchStore(folder / "patches/s.zarr")
    return folder / "patches", store.read(range(len(store)))


def main(count: int = 64, runs: int = 3) -> None:
    encoder = load_encoder("resnet50", "random")
    model = zoo.resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(encoder.unmerged.state_dict())
    model.eval()
    auto = Embedder(encoder, EmbedSettings(device="cpu")).precision
    precisions = tuple(dict.fromkeys(("fp32", auto)))
    with tempfile.TemporaryDirectory() as folder:
        slides = {"few": tiled(Path(folder, "few"), count), "many": tiled(Path(folder, "many"), LARGER * count)}
        patches = {name: pixels for name, (_, pixels) in slides.items()}
        works = {"plain torch, fp32, few": lambda: plain(model, patches["few"])}
        for precision in precisions:
            embedder = Embedder(encoder, EmbedSettings(device="cpu", precision=precision))
            for name, (stores, pixels) in slides.items():
                out = Path(folder, precision, name)
                works[f"forward path, {precision}, {name}"] = partial(forward, embedder, pixels)
                works[f"command, {precision}, {name}"] = partial(command, stores, out, precision)
        small = np.resize(patches["few"], (36, *patches["few"].shape[1:]))
        works["one slide of 36"] = partial(small_slides, embedder, [small])
        works["two slides of 18"] = partial(small_slides, embedder, [small[:18], small[18:]])
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for run in range(runs + 1):  # the first warms up
            for name, work in works.items():
                start, cores_start = time.perf_counter(), time.process_time()
                work()
                if run:
                    took[name].append((time.perf_counter() - start, time.process_time() - cores_start))
    medians = {name: np.median(times, 0) for name, times in took.items()}  # by the clock, by the cores
    cores = len(os.sched_getaffinity(0))
    numbers = " and ".join(str(len(pixels)) for pixels in patches.values())
    print(f"ResNet-50, {numbers} patches of 512 px, {cores} cores, {runs} interleaved runs, auto is {auto}")
    for name, (by_clock, by_cores) in medians.items():
        print(f"{name:28} {by_clock:7.2f} s, {by_cores:7.2f} s of cores")
    more = len(patches["many"]) - len(patches["few"])
    for precision in precisions:
        path, whole = (
            medians[f"{what}, {precision}, many"] - medians[f"{what}, {precision}, few"]
            for what in ("forward path", "command")
        )
        start = medians[f"command, {precision}, few"] - whole * len(patches["few"]) / more
        say(
            f"command, {precision}: {more / whole[0]:.1f} patches/s after a start of {start[0]:.1f} s",
            "its forward path",
            path / whole,
        )
        faster = medians["plain torch, fp32, few"] / medians[f"forward path, {precision}, few"]
        say(f"forward path, {precision}", "plain torch", faster)
    say("two slides of 18", "one slide of 36", medians["one slide of 36"] / medians["two slides of 18"])


def say(what: str, of: str, speeds: np.ndarray) -> None:
    print(f"{what}: {speeds[0]:.2f} of the speed of {of}, {speeds[1]:.2f} by the time of cores")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
