"""Samples of patches."""

import numpy as np
import pytest

from features.embed.patch_source import evenly_spaced


@pytest.mark.parametrize(("count", "wanted"), [(1, 5), (7, 3), (100, 8), (3, 3)])
def test_evenly_spaced_indices_are_different_and_there(count, wanted):
    found = evenly_spaced(count, wanted)
    assert len(set(found)) == min(count, wanted) and min(found) >= 0 and max(found) < count
    assert found == sorted(found) and abs(np.mean(found) - (count - 1) / 2) <= 0.5
