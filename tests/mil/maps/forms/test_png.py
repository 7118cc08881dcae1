"""The picture, read back: what is warm, and where."""

import json
import math

import numpy as np
import pytest
from drawn_slides import GRID, attention, drawn_of
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import label

from mil.maps.forms import png


def test_the_picture_is_warm_where_attention_is_high(tmp_path):
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 8
    values[-1] = 0.125
    slide = attention(GRID, values)
    png.write(tmp_path / "s.png", drawn_of(slide, opacity=1.0))
    with Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
        assert json.loads(image.info["slidemil"]) == {"a": 1}
    right = pixels[:, : int(pixels.shape[1] * 0.9)]  # without the colour bar
    hot, usual = (  # on a logarithmic scale 1 lies half-way between 0.125 and 8; the colder, the more transparent
        np.nonzero(np.abs(right - 255 * ((1 - alpha) + alpha * np.array(colormaps["inferno"](v)[:3]))).max(2) <= 4)
        for v, alpha in ((1.0, 1.0), (0.5, 0.65))
    )
    across, down = np.ptp(hot[1]) + 1, np.ptp(hot[0]) + 1
    assert abs(across - down) <= 1 and len(hot[0]) == across * down  # a full square, where it belongs:
    assert len(usual[0]) / len(hot[0]) == pytest.approx(len(GRID) - 2, rel=0.03)
    assert (hot[1].min() - usual[1].min()) / across == pytest.approx(3, abs=0.05)
    assert (hot[0].min() - usual[0].min()) / down == pytest.approx(2, abs=0.05)


def test_a_patch_over_the_edge_ends_with_the_slide(tmp_path, sticking_out):
    """The shape of the part of the marked square that lies on the slide; the colour bar has a few warm pixels too."""
    slide, corner = sticking_out
    png.write(tmp_path / "s.png", drawn_of(slide, opacity=1.0))
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
    areas, count = label(np.abs(pixels - 255 * np.array(colormaps["inferno"](1.0)[:3])).max(2) <= 4)
    largest = 1 + np.argmax([np.sum(areas == number + 1) for number in range(count)])
    rows, columns = np.nonzero(areas == largest)
    across, down = np.ptp(columns) + 1, np.ptp(rows) + 1
    left, top, right, bottom = np.clip([*corner, *(corner + 512)], 0, [9999, 6789] * 2)
    assert len(rows) == across * down and across / down == pytest.approx((right - left) / (bottom - top), rel=0.08)


@pytest.mark.parametrize("values", [np.ones(len(GRID)), np.r_[1.0, np.zeros(len(GRID) - 1)]])
@pytest.mark.parametrize("mpp", [0.25, math.nan])
def test_flat_and_one_hot_attention_and_unknown_scale_are_drawn(tmp_path, values, mpp):
    slide = attention(GRID, values, mpp=mpp)
    png.write(tmp_path / "s.png", drawn_of(slide))
    assert Image.open(tmp_path / "s.png").size[0] > 1000
