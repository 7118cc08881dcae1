"""A slide with one marked patch."""

import numpy as np
import pytest
from drawn_slides import attention


@pytest.fixture(params=[(-207, -151), (9999 - 300, 6789 - 200)], ids=["left and top", "right and bottom"])
def sticking_out(request):
    """A slide in patches of a grid that lies over its edges; the one at a corner of the slide is marked."""
    first_x, first_y = (n % 512 - 512 for n in request.param)
    coords = [(x, y) for y in range(first_y, 6789, 512) for x in range(first_x, 9999, 512)]
    values = np.full(len(coords), 1.0)
    values[coords.index(request.param)] = 50
    return attention(coords, values, width=9999, height=6789, mpp=0.2527), np.array(request.param)


@pytest.fixture
def marked():
    """Overlapping patches on a slide that is not square, one of them marked, and the marked corner."""
    coords = [(x, y) for y in range(100, 6000, 384) for x in range(60, 9000, 384)]
    at = coords.index((60 + 384 * 9, 100 + 384 * 4))
    values = np.full(len(coords), 1.0)
    values[at] = 50
    return attention(coords, values, width=9999, height=6789, mpp=0.2527), np.array(coords[at])
