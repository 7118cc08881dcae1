"""A slide with one marked patch."""

import numpy as np
import pytest
from drawn_slides import attention


@pytest.fixture
def marked():
    """Overlapping patches on a slide that is not square, one of them marked, and the marked corner."""
    coords = [(x, y) for y in range(100, 6000, 384) for x in range(60, 9000, 384)]
    at = coords.index((60 + 384 * 9, 100 + 384 * 4))
    values = np.full(len(coords), 1.0)
    values[at] = 50
    return attention(coords, values, width=9999, height=6789, mpp=0.2527), np.array(coords[at])
