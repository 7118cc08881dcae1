import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.grid.corners import covered_fraction, covered_share, padded_fraction, patch_grid
from tiling.grid.scale import choose_scale


@settings(deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    patch=st.integers(16, 600),
    overlap=st.integers(0, 15),
    mpp=st.floats(0.25, 1.0),
)
def test_grid_covers_the_slide_and_stays_inside(picture, width, height, patch, overlap, mpp):
    scale = choose_scale(picture(np.zeros((8, 8, 3), np.uint8), factors=(1,)), mpp, patch, overlap)
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


def test_neighbours_at_an_odd_stride_do_not_drift(picture):
    """Downsample 4.0006 of level 1: corners are whole level-0 pixels, and rounding does not add up."""
    slide = picture()
    slide.downsamples = (1.0, 4.0006, 16.0)
    scale = choose_scale(slide, 1.0, 512, 0)
    assert scale.level == 1 and scale.patch_size_l0 == 2048
    corners = patch_grid(200_000, 2048, scale)[:, 0]
    assert np.abs(np.rint(corners / scale.downsample) - corners / scale.downsample).max() <= 0.5


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    downsample=st.sampled_from([1.0, 4.0, 7.5]),
    size=st.integers(1, 40),
    coords=st.lists(st.tuples(st.integers(-30, 90), st.integers(-30, 80)), max_size=12),
    slide=st.tuples(st.integers(1, 105), st.integers(1, 82)),
)
def test_covered_share_counts_each_bit_of_tissue_once(seed, downsample, size, coords, slide):
    """Against tissue painted at an eighth of a level-0 pixel, and squares painted over it."""
    mask = np.random.default_rng(seed).random((11, 14)) < 0.5
    fine = np.arange(0.0625, 105, 0.125)
    cells = np.minimum((fine / downsample).astype(int), 13), np.minimum((fine / downsample).astype(int), 10)
    tissue = mask[np.ix_(cells[1], cells[0])] & (fine < min(slide[1], 11 * downsample))[:, None]
    tissue &= fine < min(slide[0], 14 * downsample)
    inside = np.zeros_like(tissue)
    for x, y in coords:
        inside |= np.outer((fine >= y) & (fine < y + size), (fine >= x) & (fine < x + size))
    share = covered_share(mask, downsample, np.array(coords, np.int64).reshape(-1, 2), size, slide)
    if not tissue.any():
        assert np.isnan(share)
    else:
        assert share == pytest.approx((tissue & inside).sum() / tissue.sum(), abs=1e-9)


def test_shares_of_a_patch_that_sticks_out_are_of_its_whole_area():
    mask = np.ones((10, 10), bool)  # 100 px wide, of which the slide has 95 × 60
    coords = np.array([[-30, 0], [-30, -10], [75, 40], [20, 20]])
    assert covered_fraction(mask, 10.0, coords, 40, (95, 60)) == pytest.approx([0.25, 0.1875, 0.25, 1])
    padded = padded_fraction(coords, 40, (95, 60))
    assert padded == pytest.approx([0.75, 0.8125, 0.75, 0]) and padded.dtype == np.float32
