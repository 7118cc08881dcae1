"""Samples of patches."""

import numpy as np
import pytest

from features.embed.patch_source import evenly_spaced, patches_of
from tiling.store.patches import PatchStore


@pytest.mark.parametrize(("count", "wanted"), [(1, 5), (7, 3), (100, 8), (3, 3)])
def test_evenly_spaced_indices_are_different_and_there(count, wanted):
    found = evenly_spaced(count, wanted)
    assert len(set(found)) == min(count, wanted) and min(found) >= 0 and max(found) < count
    assert found == sorted(found) and abs(np.mean(found) - (count - 1) / 2) <= 0.5


def test_what_lies_beyond_the_slide_is_no_tissue(make_store, tissue, tmp_path):
    """Against each pixel's middle looked up by itself; the slide is 5000 × 4000 px, a mask cell 64 of them wide."""
    mask = np.random.default_rng(0).random((63, 79)) < 0.7
    store = PatchStore(make_store(tmp_path, "s", tissue(4, 64), mask=mask))
    store.coords_l0 = np.array([[-51, -20], [4950, 3981], [700, -127], [1321, 703]])
    with patches_of(store, None) as source:
        found = source.tissue([0, 1, 2, 3])
    for i, (left, top) in enumerate(store.coords_l0.tolist()):
        expected = np.zeros((64, 64), bool)
        for row, column in np.ndindex(64, 64):
            x, y = left + 2 * column + 1, top + 2 * row + 1
            expected[row, column] = 0 <= x < 5000 and 0 <= y < 4000 and mask[y // 64, x // 64]
        assert (found.mask[found.rows[i]][:, found.columns[i]] == expected).all() and expected.any()
