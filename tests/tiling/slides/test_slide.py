import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from tiling.slides import slide
from tiling.slides.slide import REDUCTIONS, read_reduced

PHOTOGRAPH = astronaut()


@settings(deadline=None, max_examples=60)
@given(draw=st.data())
def test_bands_are_small_and_together_what_one_read_gives(draw):
    """Whatever the limit is; it is exceeded only by a band that gives a single row."""
    reduction, limit = draw.draw(st.sampled_from(REDUCTIONS)), draw.draw(st.sampled_from((1, 3000, 20_000, 1 << 20)))
    most = 512 // reduction
    x, y = draw.draw(st.integers(0, most - 1)), draw.draw(st.integers(0, most - 1))
    width, height = draw.draw(st.integers(1, most - x)), draw.draw(st.integers(1, most - y))
    asked = []

    def read(left, top, w, h):
        asked.append((w, h))
        return PHOTOGRAPH[top : top + h, left : left + w]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide, "_AT_ONCE_PX", limit)
        found = read_reduced(read, x, y, width, height, reduction)
    inside = PHOTOGRAPH[y * reduction :, x * reduction :][: height * reduction, : width * reduction]
    assert (found == np.asarray(Image.fromarray(inside).reduce(reduction))).all()
    assert all(w * h <= max(limit, w * reduction) for w, h in asked)
    assert sum(w * h for w, h in asked) == width * height * reduction**2  # none is read twice
