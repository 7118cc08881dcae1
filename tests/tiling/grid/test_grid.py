import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiling.grid.corners import covered_fraction, patch_grid
from tiling.grid.resample import area_average, read_patch
from tiling.grid.scale import choose_scale
from tiling.jobs.errors import SlideError


class Picture:
    """A slide in memory: level 0 is given, further levels are area averages by whole factors."""

    backend, mpp_source, path = "memory", "memory", Path("picture")

    def __init__(self, pixels, mpp=(0.25, 0.25), factors=(1,)):
        self.levels = [
            pixels[: len(pixels) // f * f, : pixels.shape[1] // f * f]
            .reshape(len(pixels) // f, f, pixels.shape[1] // f, f, 3)
            .mean((1, 3))
            .round()
            .astype(np.uint8)
            for f in factors
        ]
        self.level_sizes = tuple((p.shape[1], p.shape[0]) for p in self.levels)
        self.downsamples = tuple(float(f) for f in factors)
        self.mpp = mpp

    def read(self, level, x, y, width, height, reduction=1):
        width, height = width * reduction, height * reduction
        out = np.full((height, width, 3), 255, np.uint8)
        part = self.levels[level][y * reduction :, x * reduction :][:height, :width]
        out[: part.shape[0], : part.shape[1]] = part
        return np.asarray(Image.fromarray(out).reduce(reduction))

    def close(self):
        pass


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(mpp=0.25, factors=(1, 4, 16)):
    return Picture(np.zeros((64, 64, 3), np.uint8), (mpp, mpp), factors)


@pytest.mark.parametrize(
    ("mpp_l0", "target", "level", "reduction", "size_l0", "obtained"),
    [
        (0.25, 0.25, 0, 1, 512, 0.25),
        (0.25, 0.5, 0, 2, 1024, 0.5),
        (0.25, 1.0, 1, 1, 2048, 1.0),  # a stored level comes before a reduced one
        (0.25, 2.0, 1, 2, 4096, 2.0),
        (0.2525, 0.25, 0, 1, 512, 0.2525),  # within 2 %: as it is, and what was obtained is recorded
        (0.2525, 0.5, 0, 2, 1024, 0.505),
        (0.265, 0.25, None, 1, None, None),  # 6 % coarser: nothing is upsampled
        (0.265, 0.5, 0, 1, 966, 966 / 512 * 0.265),
        (0.246, 0.25, 0, 1, 512, 0.246),
        (0.2440, 0.25, 0, 1, 525, 525 / 512 * 0.244),  # 2.4 % finer: resampled
        (0.499, 0.5, 0, 1, 512, 0.499),
        (0.25, 3.0, 1, 1, 6144, 3.0),
        (0.25, 0.7, 0, 1, 1434, 1434 / 512 * 0.25),
        (0.08, 0.26, 0, 1, 1664, 0.26),
        (0.05, 0.22, 1, 1, 2253, 2253 / 512 * 0.05),
        (0.25, 9.0, 2, 1, 18432, 9.0),
        (0.25, 19.0, 2, 2, 38912, 19.0),  # half of level 2, then averaged by 2.4
    ],
)
def test_scale_is_micrometres_not_a_bucket(mpp_l0, target, level, reduction, size_l0, obtained):
    slide = picture(mpp_l0)
    if level is None:
        with pytest.raises(SlideError, match="nothing is upsampled"):
            choose_scale(slide, target, 512, 0)
        return
    scale = choose_scale(slide, target, 512, 0)
    assert (scale.level, scale.reduction, scale.patch_size_l0) == (level, reduction, size_l0)
    assert scale.mpp == pytest.approx(obtained, rel=1e-12)


def test_scale_that_cannot_be_true_is_refused_with_the_remedy():
    for mpp, said in [
        ((0.00499, 0.00499), "0.00499"),
        ((896, 896), "896"),
        ((0.25, 0.27), "not square"),
        (None, "not say"),
    ]:
        slide = picture()
        slide.mpp = mpp
        with pytest.raises(SlideError, match=said) as error:
            choose_scale(slide, 0.5, 512, 0)
        assert "column `mpp`" in str(error.value) and "--mpp native" in str(error.value)
        assert choose_scale(slide, 0.5, 512, 0, mpp_table=0.25).mpp_source == "slide table"
        native = choose_scale(slide, "native", 512, 0)
        assert (native.level, native.patch_size_l0) == (0, 512) and math.isnan(native.mpp_l0)


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    patch=st.integers(16, 600),
    overlap=st.integers(0, 15),
    mpp=st.floats(0.25, 1.0),
)
def test_grid_covers_the_slide_and_stays_inside(width, height, patch, overlap, mpp):
    scale = choose_scale(Picture(np.zeros((8, 8, 3), np.uint8)), mpp, patch, overlap)
    coords = patch_grid(width, height, scale)
    size, stride = scale.patch_size_l0, scale.stride_l0
    expected = [(x, y) for y in range(0, height - size + 1, stride) for x in range(0, width - size + 1, stride)]
    assert coords.tolist() == [list(c) for c in expected]
    assert abs(size / patch * 0.25 - mpp) <= max(0.02 * mpp, 0.5 / patch * 0.25)  # a whole number of level-0 pixels


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    downsample=st.sampled_from([1.0, 4.0, 7.5, 16.025, 32.0]),
    size=st.integers(1, 200),
    x=st.integers(0, 200),
    y=st.integers(0, 150),
)
def test_tissue_fraction_is_the_exact_area(seed, downsample, size, x, y):
    mask = np.random.default_rng(seed).random((11, 14)) < 0.5
    fraction = covered_fraction(mask, downsample, np.array([[x, y]]), size)
    area = 0.0
    for row, column in np.argwhere(mask):  # overlap of two rectangles, one mask cell at a time
        w = min((column + 1) * downsample, x + size) - max(column * downsample, x)
        h = min((row + 1) * downsample, y + size) - max(row * downsample, y)
        area += max(w, 0) * max(h, 0)
    assert fraction[0] == pytest.approx(min(1, area / size**2), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(size=st.floats(8, 40), x=st.floats(0, 0.99), y=st.floats(0, 0.99), out_px=st.integers(2, 8))
def test_area_average_is_the_mean_of_what_a_pixel_covers(size, x, y, out_px):
    region = noise(42, 42)
    got = area_average(region, x, y, size, out_px)
    step = size / out_px
    for i in range(out_px):
        for j in range(out_px):
            total = np.zeros(3)
            for row in range(42):
                for column in range(42):
                    h = min(row + 1, y + (i + 1) * step) - max(row, y + i * step)
                    w = min(column + 1, x + (j + 1) * step) - max(column, x + j * step)
                    total += region[row, column] * max(h, 0) * max(w, 0)
            assert np.abs(got[i, j] - total / step**2).max() <= 0.51


def test_a_level_within_two_percent_is_taken_pixel_by_pixel():
    slide = Picture(noise(512, 768), factors=(1, 4))
    scale = choose_scale(slide, 1.01, 32, 0)
    assert (scale.level, scale.patch_size_l0) == (1, 128)
    for x, y in patch_grid(768, 512, scale):
        expected = slide.levels[1][y // 4 : y // 4 + 32, x // 4 : x // 4 + 32]
        assert (read_patch(slide, scale, x, y) == expected).all()


@pytest.mark.parametrize("target", [0.5, 0.4, 0.75, 0.625])
def test_a_target_between_levels_is_the_area_mean_of_the_finer_one(target):
    slide = Picture(noise(480, 768), factors=(1, 4))
    scale = choose_scale(slide, target, 30, 0)
    side = scale.patch_size_l0
    assert side == 30 * target / 0.25
    for x, y in patch_grid(768, 480, scale):
        level0 = slide.levels[0][y : y + side, x : x + side].astype(float)
        fine = level0.repeat(30, 0).repeat(30, 1)  # each output pixel is side × side of these
        expected = fine.reshape(30, side, 30, side, 3).mean((1, 3))
        assert np.abs(read_patch(slide, scale, x, y) - expected).max() <= 0.56


def test_a_slide_without_a_pyramid_is_reduced_in_reading_and_then_averaged():
    ramp = np.add.outer(np.linspace(0, 120, 512), np.linspace(0, 120, 512))
    slide = Picture(ramp[..., None].repeat(3, 2).astype(np.uint8))
    scale = choose_scale(slide, 1.15, 32, 0)  # 4.6 times
    assert (scale.level, scale.reduction, scale.patch_size_l0) == (0, 2, 147)
    for x, y in patch_grid(512, 512, scale):
        steps = (np.arange(32) + 0.5) * 147 / 32 - 0.5  # middles of the output pixels
        expected = np.add.outer((y + steps), (x + steps)) * 120 / 511
        assert np.abs(read_patch(slide, scale, x, y)[..., 0] - expected).max() < 1.5


def test_neighbours_at_an_odd_stride_do_not_drift():
    """Downsample 4.0006 of level 1: corners are whole level-0 pixels, and rounding does not add up."""
    slide = picture()
    slide.downsamples = (1.0, 4.0006, 16.0)
    scale = choose_scale(slide, 1.0, 512, 0)
    assert scale.level == 1 and scale.patch_size_l0 == 2048
    corners = patch_grid(200_000, 2048, scale)[:, 0]
    assert np.abs(np.rint(corners / scale.downsample) - corners / scale.downsample).max() <= 0.5
