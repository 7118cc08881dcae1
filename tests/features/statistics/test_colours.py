"""Colours of tissue against loops over pixels."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.feature_file import read_statistics
from features.statistics.colours import NO_PIXELS, PixelSums, Tissue, pixel_sums
from tiling.store.patches import PatchStore


def tissue_pixels(store):
    """(K, 3) of all tissue pixels of a store: a loop over patches, rows and columns."""
    info, mask = store.info, store.tissue_mask
    found = []
    for patch, (x, y) in zip(store.read(range(len(store))), store.coords_l0, strict=True):
        step = info.patch_size_l0 / info.patch_size_px
        for row in range(info.patch_size_px):
            cell_y = min(int((y + (row + 0.5) * step) / info.thumbnail_downsample), mask.shape[0] - 1)
            for column in range(info.patch_size_px):
                cell_x = min(int((x + (column + 0.5) * step) / info.thumbnail_downsample), mask.shape[1] - 1)
                if mask[cell_y, cell_x]:
                    found.append(patch[row, column])
    return np.array(found, np.float64) / 255


images = arrays(np.uint8, st.tuples(st.integers(0, 20), st.just(7), st.just(7), st.just(3)))


@given(values=images, seed=st.integers(0, 2**32 - 1))
def test_sums_over_pixels_are_exact(values, seed):
    random = np.random.default_rng(seed)
    mask, cells = random.random((9, 8)) < 0.5, (len(values), 7)
    rows, columns = (np.sort(random.integers(0, size, cells), 1) for size in mask.shape)
    inside = mask[rows[:, :, None], columns[:, None]]
    pixels = values[inside].astype(int)
    expected = PixelSums(len(pixels), tuple(pixels.sum(0)), tuple((pixels**2).sum(0)))
    assert pixel_sums(values, Tissue(mask, rows, columns)) == expected
    everywhere = pixel_sums(values)
    assert everywhere == pixel_sums(values, Tissue(np.ones_like(mask), rows, columns))
    assert everywhere + NO_PIXELS == everywhere


@given(arrays(np.uint8, st.tuples(st.integers(1, 50), st.just(1), st.just(1), st.just(3))))
def test_mean_and_deviation_are_those_of_all_pixels(values):
    parts = [pixel_sums(part) for part in np.array_split(values, 3)]
    got = parts[0] + parts[1] + parts[2]
    pixels = values.reshape(-1, 3) / 255
    assert np.allclose(got.mean, pixels.mean(0), rtol=1e-14) and np.allclose(got.std, pixels.std(0), atol=1e-12)


def test_colours_of_slides_and_cohort_are_those_of_their_tissue_pixels(extract, make_store, tissue, tmp_path):
    stores, out = tmp_path / "patches", tmp_path / "out"
    halves = np.random.default_rng(0).random((63, 79)) < 0.5
    for i, n in enumerate((7, 2)):
        make_store(stores, f"s{i}", tissue(n, 64, seed=i) // (i + 1), mask=halves)
    make_store(stores, "empty", tissue(0, 64), side=64)
    assert extract(stores, "--out", out, "--batch-size", "3", "--device", "cpu") == 0
    pixels = [tissue_pixels(PatchStore(stores / f"s{i}.zarr")) for i in range(2)]
    for i in range(2):
        found = read_statistics(out / f"s{i}.h5")
        assert found.tissue_pixels == len(pixels[i]) > 1000
        assert np.allclose(found.pixel_mean, pixels[i].mean(0)) and np.allclose(found.pixel_std, pixels[i].std(0))
    together = np.concatenate(pixels)
    cohort = json.loads((out / "statistics.json").read_text())
    assert (cohort["slides"], cohort["tissue_pixels"]) == (2, len(together))
    assert np.allclose(cohort["pixel_mean"], together.mean(0)) and np.allclose(cohort["pixel_std"], together.std(0))
    within = np.sqrt(np.mean([p.var(0) for p in pixels], 0))  # what averaging the slides' variances would give
    assert not np.allclose(cohort["pixel_std"], within, rtol=0.05)
    assert read_statistics(out / "empty.h5").tissue_pixels == 0
