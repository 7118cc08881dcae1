import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.grid.corners import patch_grid
from tiling.grid.resample import area_average, read_patch
from tiling.grid.scale import choose_scale


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def test_a_level_within_two_percent_is_taken_pixel_by_pixel(picture):
    slide = picture(noise(512, 768), factors=(1, 4))
    scale = choose_scale(slide, 1.01, 32, 0)
    assert (scale.level, scale.patch_size_l0) == (1, 128)
    for x, y in patch_grid(768, 512, scale):
        expected = slide.levels[1][y // 4 : y // 4 + 32, x // 4 : x // 4 + 32]
        assert (read_patch(slide, scale, x, y) == expected).all()


@pytest.mark.parametrize("target", [0.5, 0.4, 0.75, 0.625])
def test_a_target_between_levels_is_the_area_mean_of_the_finer_one(picture, target):
    slide = picture(noise(480, 768), factors=(1, 4))
    scale = choose_scale(slide, target, 30, 0)
    side = scale.patch_size_l0
    assert side == 30 * target / 0.25
    for x, y in patch_grid(768, 480, scale):
        level0 = slide.levels[0][y : y + side, x : x + side].astype(float)
        fine = level0.repeat(30, 0).repeat(30, 1)  # each output pixel is side × side of these
        expected = fine.reshape(30, side, 30, side, 3).mean((1, 3))
        assert np.abs(read_patch(slide, scale, x, y) - expected).max() <= 0.56


def test_a_slide_without_a_pyramid_is_reduced_in_reading_and_then_averaged(picture):
    ramp = np.add.outer(np.linspace(0, 120, 512), np.linspace(0, 120, 512))
    slide = picture(ramp[..., None].repeat(3, 2).astype(np.uint8), factors=(1,))
    scale = choose_scale(slide, 1.15, 32, 0)  # 4.6 times
    assert (scale.level, scale.reduction, scale.patch_size_l0) == (0, 2, 147)
    for x, y in patch_grid(512, 512, scale):
        steps = (np.arange(32) + 0.5) * 147 / 32 - 0.5  # middles of the output pixels
        expected = np.add.outer((y + steps), (x + steps)) * 120 / 511
        assert np.abs(read_patch(slide, scale, x, y)[..., 0] - expected).max() < 1.5
