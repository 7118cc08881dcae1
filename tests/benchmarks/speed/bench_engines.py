"""`--engine openvino` against `torch` on this CPU: patches per second of the cores' time, and how alike they are.

The cores' time, because others may use the machine; random weights and noise, because the time does not depend on them.
Cosine: the least between the rows of the two in one precision.

    python tests/benchmarks/speed/bench_engines.py [ENCODER ...]      default: five, about four minutes on one core
"""

import sys
import time
import warnings

import numpy as np

from features.config import EmbedSettings
from features.embed.arithmetic import exact_arithmetic
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder
from features.encoders import load_encoder

SIDES = {"resnet50": 512, "efficientnet-lite0": 256}  # px; the others take their own
COUNT = 16


def main(*names: str) -> None:
    warnings.filterwarnings("ignore")  # of the conversion, for each network
    rng = np.random.default_rng(0)
    print("| encoder | px | precision | torch | openvino | times as fast | cosine |\n" + "| --- " * 7 + "|")
    for name in names or ("resnet50", "efficientnet-lite0", "swin-t", "timm:vit_small_patch16_224", "kaiko-b16"):
        encoder = load_encoder(name, "random")
        side = SIDES.get(name, 224)
        patches = rng.integers(0, 256, (COUNT, side, side, 3), np.uint8)
        for precision in ("fp32", "bf16"):
            rates, rows = [], []
            for engine in ("torch", "openvino"):
                embedder = Embedder(encoder, EmbedSettings(device="cpu", engine=engine, precision=precision))
                with exact_arithmetic(embedder.lanes):
                    embedder.embed(in_memory(patches[: embedder.batch_size]))
                    start = time.process_time()
                    rows.append(embedder.embed(in_memory(patches)))
                    rates.append(COUNT / (time.process_time() - start))
            cosine = (rows[0] * rows[1]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[1], axis=1)
            cells = [name, side, precision, *(f"{r:.1f}" for r in rates), f"{rates[1] / rates[0]:.2f}"]
            print(f"| {' | '.join(map(str, cells))} | {cosine.min():.5f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
