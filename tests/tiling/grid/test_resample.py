import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.grid.corners import patch_grid
from tiling.grid.resample import area_average, on_slide, read_patch
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
            heights = [max(0, min(row + 1, y + (i + 1) * step) - max(row, y + i * step)) for row in range(42)]
            widths = [max(0, min(column + 1, x + (j + 1) * step) - max(column, x + j * step)) for column in range(42)]
            total = np.einsum("h,w,hwc->c", heights, widths, region)
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
    slide = picture(noise(160, 256), factors=(1, 4))
    scale = choose_scale(slide, target, 30, 0)
    side = scale.patch_size_l0
    assert side == 30 * target / 0.25
    for x, y in patch_grid(256, 160, scale):
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


@pytest.mark.parametrize(
    ("target", "px", "factors"), [(0.25, 32, (1, 4)), (1.0, 16, (1, 4)), (0.5, 16, (1,)), (0.4, 30, (1,))]
)
@pytest.mark.parametrize("corner", [(-24, -8), (232, 120), (-8, 100), (64, 48), (200, -40)])
def test_a_patch_over_the_edge_shows_the_slide_and_else_the_padding(picture, target, px, factors, corner):
    """Against the slide laid on a sheet of the padding's colour: at level 0, and then averaged."""
    slide, colour = picture(noise(160, 256, 3), factors=factors), (201, 190, 180)
    scale = choose_scale(slide, target, px, 0)
    x, y = corner
    found = read_patch(slide, scale, x, y, colour).astype(float)
    sheet = np.empty((600, 700, 3))
    sheet[:] = colour
    sheet[200:360, 200:456] = slide.levels[0]
    side = scale.patch_size_l0
    part = sheet[200 + y : 200 + y + side, 200 + x : 200 + x + side]
    fine = part.repeat(px, 0).repeat(px, 1) if side % px else part
    step = len(fine) // px
    assert np.abs(found - fine.reshape(px, step, px, step, 3).mean((1, 3))).max() <= 1
    rows, columns = on_slide(slide, scale, x, y)
    seen = np.zeros((side, side), bool)
    seen[max(0, -y) : max(0, 160 - y), max(0, -x) : max(0, 256 - x)] = True
    fine = seen.repeat(px, 0).repeat(px, 1) if side % px else seen
    whole = fine.reshape(px, len(fine) // px, px, len(fine) // px).all((1, 3))
    expected = np.zeros_like(whole)
    expected[rows, columns] = True
    assert (whole == expected).all()


def test_a_last_pixel_that_is_half_on_the_slide_is_padding(picture):
    slide = picture(np.zeros((64, 65, 3), np.uint8), factors=(1,))
    scale = choose_scale(slide, 0.5, 16, 0)
    found = read_patch(slide, scale, 48, 32, (9, 8, 7))
    assert (found[:, :8] == 0).all() and (found[:, 8:] == (9, 8, 7)).all()
