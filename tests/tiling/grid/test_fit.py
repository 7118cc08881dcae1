"""The grid that suits the tissue: against every offset tried one by one, and where the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.grid.corners import covered_fraction, covered_share, patch_grid
from tiling.grid.fit import fitted_grid, grid_through


def scale_of(size, stride=None, downsample=1.0):
    return SimpleNamespace(patch_size_l0=size, stride_l0=stride or size, downsample=downsample)


def blobs(seed, shape):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 5)):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 12)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return mask


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999),
    min_tissue=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
    patch=st.sampled_from([(64, 64), (64, 48), (100, 100), (64, 16)]),
)
def test_no_other_offset_is_worth_more(seed, min_tissue, patch):
    size, stride = patch
    mask, slide = blobs(seed, (30, 40)), (315, 236)  # cells of 8 px: the last ones reach over the edge

    def worth(coords):
        shares = covered_fraction(mask, 8.0, coords, size, slide).astype(float)
        kept = shares >= min_tissue - 1e-7
        return (shares[kept] - min_tissue).sum(), shares[kept].sum(), -kept.sum()

    found = fitted_grid(mask, 8.0, slide, scale_of(size, stride), min_tissue)
    best = worth(found)
    offsets = range(0, stride, 8) if stride % 8 == 0 else [round(i * stride / 12) for i in range(12)]
    for dy in offsets:
        for dx in offsets:
            xs, ys = (
                np.arange(d - 4 * size // stride * stride, n, stride) for d, n in zip((dx, dy), slide, strict=True)
            )
            grid = np.array([(x, y) for y in ys for x in xs if x > -size and y > -size])
            other = worth(grid)
            assert best[0] >= other[0] - 1e-4
            assert best[0] > other[0] + 1e-4 or best[1] >= other[1] - 1e-4
            assert best[0] > other[0] + 1e-4 or best[1] > other[1] + 1e-4 or best[2] >= other[2]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), downsample=st.sampled_from([1.0, 2.0, 4.0, 8.0]), overlap=st.sampled_from([0, 16]))
def test_corners_are_whole_pixels_as_read_on_one_lattice_and_all_touch_the_slide(seed, downsample, overlap):
    size, stride = int(50 * downsample), int((50 - overlap) * downsample)  # no whole number of cells
    slide = (int(300 * downsample), int(210 * downsample))
    coords = fitted_grid(blobs(seed, (27, 38)), 8.0 * downsample, slide, scale_of(size, stride, downsample), 0.2)
    assert not (coords % downsample).any()
    for axis, length in enumerate(slide):
        places = np.unique(coords[:, axis])
        assert (np.diff(places) == stride).all()
        assert -size < places[0] <= stride - size and length - stride <= places[-1] < length
    assert len(coords) == np.prod([len(np.unique(of_axis)) for of_axis in coords.T])
    assert coords.tolist() == sorted(coords.tolist(), key=lambda corner: corner[::-1])  # row by row


def test_a_rectangle_of_whole_patches_is_met_exactly():
    mask = np.zeros((50, 60), bool)
    mask[7:27, 13:43] = True  # 3 × 2 patches of 10 cells, off every lattice of 10
    coords = fitted_grid(mask, 32.0, (1920, 1600), scale_of(320), 0.2)
    kept = coords[covered_fraction(mask, 32.0, coords, 320) >= 0.2]
    assert kept.tolist() == [[x, y] for y in (224, 544) for x in (416, 736, 1056)]
    assert covered_share(mask, 32.0, kept, 320) == 1


def test_tissue_at_the_edges_is_not_cut_off():
    mask = np.zeros((40, 40), bool)
    mask[:16] = True
    mask[:, :10] = True
    slide = (320, 320)
    for size in (128, 96):
        coords = fitted_grid(mask, 8.0, slide, scale_of(size), 0.2)
        kept = coords[covered_fraction(mask, 8.0, coords, size, slide) >= 0.2]
        assert covered_share(mask, 8.0, kept, size, slide) >= 0.95
        at_origin = patch_grid(*slide, scale_of(size))
        kept_there = at_origin[covered_fraction(mask, 8.0, at_origin, size, slide) >= 0.2]
        assert covered_share(mask, 8.0, kept, size, slide) >= covered_share(mask, 8.0, kept_there, size, slide)


@pytest.mark.parametrize("mask", [np.zeros((5, 5), bool), np.ones((5, 5), bool), np.ones((1, 1), bool)])
def test_equal_offsets_leave_the_grid_at_the_corner(mask):
    side = len(mask) * 8
    coords = fitted_grid(mask, 8.0, (side, side), scale_of(side), 0.2)
    assert coords.tolist() == [[0, 0]]


def test_the_same_slide_gives_the_same_grid():
    mask = blobs(3, (80, 90))
    first, again = (fitted_grid(mask, 8.0, (720, 640), scale_of(128), 0.2) for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize(("size", "stride"), [(128, 128), (128, 32)])
def test_a_finer_grid_through_a_corner_has_the_patches_of_the_coarse_one(size, stride):
    mask, slide = blobs(5, (40, 50)), (395, 318)
    coarse = fitted_grid(mask, 8.0, slide, scale_of(128), 0.2)
    for corner in (tuple(coarse[0].tolist()), tuple(coarse[-1].tolist())):
        fine = grid_through(corner, slide, scale_of(size, stride))
        assert set(map(tuple, coarse.tolist())) <= set(map(tuple, fine.tolist()))
        assert (fine > -size).all() and (fine < slide).all()
        for axis, length in enumerate(slide):
            assert len(np.unique(fine[:, axis])) == len(
                [n for n in range(-size + 1, length) if (n - corner[axis]) % stride == 0]
            )
