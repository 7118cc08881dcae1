"""`extract-features` on a GPU against its own forward pass, and against the loop that most labs run (`make bench-gpu`).

Forward only: our network in bf16 on random images that lie on the GPU already. Command: from JPEG patch stores to
feature files flushed to disk, without the start of the process. Usual loop: DataLoader workers that decode with PIL,
torchvision's transforms, fp32 network, one slide after another. ResNet-50 with random weights at 512 px. Prints
patches per second, ratios, how busy the GPU was (where nvidia-smi tells), and the share of time that decoding alone
takes. Medians of interleaved runs.

    python tests/benchmarks/speed/gpu_features.py [PATCHES [RUNS]]      default 8192 3
"""

import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Normalize, PILToTensor, ToDtype

from features.config import EmbedSettings, FeatureConfig
from features.embed.engines import engine_runs
from features.embed.pipe import Embedder
from features.encoders import load_encoder
from features.pipeline import extract_features, find_stores
from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.store.patches import PatchStore

SLIDES, BATCH = 8, 128


class Jpegs(Dataset):
    def __init__(self, jpegs: list[bytes]) -> None:
        self.jpegs = jpegs
        self.transform = Compose(
            [PILToTensor(), ToDtype(torch.float32, scale=True), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        )

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.jpegs[index])).convert("RGB"))


def usual_loop(model: torch.nn.Module, stores: list[PatchStore], out: Path) -> None:
    for store in stores:
        data = Jpegs(store.read_encoded(range(len(store))))
        with torch.inference_mode():
            batches = DataLoader(data, batch_size=BATCH, num_workers=8, pin_memory=True)
            features = [model(images.cuda(non_blocking=True)).cpu() for images in batches]
        np.save(out / f"{store.path.stem}.npy", torch.cat(features).numpy())


def forward_only(embedder: Embedder, count: int) -> None:
    pixels = torch.randint(0, 256, (BATCH, 512, 512, 3), dtype=torch.uint8, device="cuda")
    run = engine_runs(embedder.encoder, "torch", embedder.device, embedder.precision, 0, 1)[0]
    with torch.inference_mode():
        for _ in range(count // BATCH):
            embedder._compute(run, pixels)
    torch.cuda.synchronize()


def decode_only(stores: list[PatchStore]) -> None:
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as threads:
        for store in stores:
            parts = (range(i, min(i + 8, len(store))) for i in range(0, len(store), 8))
            list(threads.map(lambda part, store=store: store.read(part) is None, parts))


class Utilisation(threading.Thread):
    """Mean of what nvidia-smi says of the GPU while the block runs, in per cent; NaN where there is no nvidia-smi."""

    def __enter__(self) -> "Utilisation":
        self.seen: list[float] = []
        self.ended = threading.Event()
        self.start()
        return self

    def run(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while shutil.which("nvidia-smi") and not self.ended.wait(0.2):
            self.seen += map(float, subprocess.run(query, capture_output=True, text=True).stdout.split())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    @property
    def mean(self) -> float:
        return statistics.mean(self.seen) if self.seen else float("nan")


def main(count: int = 8192, runs: int = 3) -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    encoder = load_encoder("resnet50", "random")
    plain = zoo.resnet50()
    plain.fc = torch.nn.Identity()
    plain.load_state_dict(encoder.unmerged.state_dict())
    plain.eval().cuda()
    with tempfile.TemporaryDirectory() as folder:
        patches, out = Path(folder, "patches"), Path(folder, "out")
        side = 512 * int(np.ceil(np.sqrt(count / SLIDES)))
        write_phantom(PhantomSpec(width_px=side, height_px=side, mpp=0.5, seed=0, tumour=True), Path(folder, "s.svs"))
        tile_slides(
            [SlideRow(f"s{i}", Path(folder, "s.svs")) for i in range(SLIDES)], TilingConfig(tissue="all"), patches
        )
        stores = [PatchStore(path) for path in sorted(patches.glob("*.zarr"))]
        count = sum(map(len, stores))
        ours = Embedder(encoder, EmbedSettings(device="cuda", precision="bf16"))

        def command() -> None:
            shutil.rmtree(out, ignore_errors=True)
            config = FeatureConfig(encoder="resnet50", weights="random", device="cuda")
            assert extract_features(find_stores(patches), config, patches, out).counts == {"done": SLIDES}

        works = {
            "forward only": lambda: forward_only(ours, count),
            "extract-features": command,
            "usual loop": lambda: usual_loop(plain, stores, Path(folder)),
            "decoding alone, on the CPU": lambda: decode_only(stores),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        busy: dict[str, list[float]] = {name: [] for name in works}
        for run in range(runs + 1):  # the first warms up
            for name, work in works.items():
                with Utilisation() as gpu:
                    start = time.perf_counter()
                    work()
                    taken = time.perf_counter() - start
                if run:
                    seconds[name].append(taken)
                    busy[name].append(gpu.mean)
    print(f"ResNet-50, {count} patches of 512 px, {torch.cuda.get_device_name()}, {runs} interleaved runs")
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:26} {rate:8.0f} patches/s, GPU {statistics.median(busy[name]):.0f} % busy")
    print(f"extract-features runs at {rates['extract-features'] / rates['forward only']:.2f} of the forward pass,")
    print(f"{rates['extract-features'] / rates['usual loop']:.1f} times as fast as the usual loop")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
