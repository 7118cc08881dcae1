"""`--engine openvino` against `torch` on this CPU: patches per second of the cores' time, and how alike they are.

The cores' time, because others may use the machine; random weights and noise, because the time does not depend on them.
Cosine: the least between the rows of the two in one precision.

Then OpenVINO in int8 against its other precisions, calibrated on crops of a real IHC image: its cosine to fp32, on
average and the least, on crops that it was not calibrated on. That means something for published weights alone, which
EfficientNet-Lite0 has here.

    python tests/benchmarks/speed/bench_engines.py [ENCODER ...]      default: five, about six minutes on one core
"""

import sys
import time
import warnings

import numpy as np
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from features.config import EmbedSettings
from features.embed.arithmetic import exact_arithmetic
from features.embed.calibration import calibrate
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder
from features.embed.sample import Sample
from features.encoders import Encoder, load_encoder

SIDES = {"resnet50": 512, "efficientnet-lite0": 256}  # px; the others take their own
CONVOLUTIONAL = tuple(SIDES)
COUNT = 16
CALIBRATING = 64


def embedded(encoder: Encoder, patches: NDArray[np.uint8], settings: EmbedSettings) -> tuple[float, NDArray]:
    """Patches a second of the cores' time, and features (n, D)."""
    embedder = Embedder(encoder, settings)
    with exact_arithmetic(embedder.lanes):
        embedder.embed(in_memory(patches[: embedder.batch_size]))
        start = time.process_time()
        rows = embedder.embed(in_memory(patches))
        return len(patches) / (time.process_time() - start), rows


def cosines(a: NDArray, b: NDArray) -> NDArray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def engines(name: str) -> None:
    encoder, side = load_encoder(name, "random"), SIDES.get(name, 224)
    patches = np.random.default_rng(0).integers(0, 256, (COUNT, side, side, 3), np.uint8)
    for precision in ("fp32", "bf16"):
        settings = [EmbedSettings(device="cpu", engine=e, precision=precision) for e in ("torch", "openvino")]
        rates, rows = zip(*(embedded(encoder, patches, of) for of in settings), strict=True)
        cells = [name, side, precision, *(f"{r:.1f}" for r in rates), f"{rates[1] / rates[0]:.2f}"]
        print(f"| {' | '.join(map(str, cells))} | {cosines(*rows).min():.5f} |", flush=True)


def int8(name: str) -> None:
    encoder = load_encoder(name, "default" if name == "efficientnet-lite0" else "random")
    side, image, rng = SIDES.get(name, 224), immunohistochemistry(), np.random.default_rng(0)
    image = np.pad(image, ((0, 256), (0, 256), (0, 0)), "reflect")
    corners = rng.integers(0, len(image) - side + 1, (CALIBRATING + CALIBRATING // 3, 2))
    network = calibrate(encoder, Sample(np.stack([image[y : y + side, x : x + side] for x, y in corners]), 1))
    patches = rng.integers(0, 256, (COUNT, side, side, 3), np.uint8)
    settings = [EmbedSettings(device="cpu", engine="openvino", precision=p) for p in ("fp32", "bf16", "int8")]
    rates = [embedded(encoder.in_int8(network), patches, of)[0] for of in settings]
    cells = [name, side, *(f"{r:.1f}" for r in rates), f"{rates[2] / rates[1]:.2f}"]
    print(f"| {' | '.join(map(str, cells))} | {network.cosine_mean:.4f}, {network.cosine_lowest:.4f} |", flush=True)


def main(*names: str) -> None:
    warnings.filterwarnings("ignore")  # of the conversion, for each network
    print("| encoder | px | precision | torch | openvino | times as fast | cosine |\n" + "| --- " * 7 + "|")
    for name in names or (*CONVOLUTIONAL, "swin-t", "timm:vit_small_patch16_224", "kaiko-b16"):
        engines(name)
    print("\n| encoder | px | fp32 | bf16 | int8 | int8 to bf16 | cosine to fp32 |\n" + "| --- " * 7 + "|")
    for name in names or CONVOLUTIONAL:
        int8(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
