"""Felt-tip on real slides, of the half that no rule was set on; and what must not be taken for it."""

import os

import numpy as np
import pytest
from pen_slides import pen_slides
from PIL import Image
from slide_artefacts import ACROSS, SCENES, with_pen

from tiling.tissue.thumbnail import Thumbnail
from tiling.tissue.tissue import map_tissue


@pytest.mark.parametrize(("mpp", "every"), [(20.0, 4), (8.0, 16)])
def test_ink_on_real_slides_is_pen_and_no_tissue(data, mpp, every):
    if not (data / "pen").is_dir():
        message = f"no slides with pen at {data / 'pen'}"
        pytest.fail(message) if os.environ.get("SLIDE_MIL_REQUIRE_DATA") else pytest.skip(message)
    counts = []
    for slide in pen_slides(data / "pen", half=1, mpp=mpp, every=every):
        found = slide.mapped()
        masks = (slide.ink & found.pen, slide.ink & found.tissue, slide.ink, slide.inside & found.pen, slide.inside)
        counts.append([mask.sum() for mask in masks])
    marked, tissue, ink, taken, inside = np.sum(counts, axis=0)
    assert marked >= 0.95 * ink and tissue <= 0.03 * ink and taken <= 0.002 * inside
    shares = [row[0] / row[2] for row in counts if row[2] >= 50 * (20 / mpp) ** 2]
    assert np.median(shares) >= 0.97


@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0])
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_a_thin_black_line_is_pen_at_any_scale(mpp, strength):
    """160 µm wide, over glass and tissue; 0.7 is a line that tissue shows through."""
    pixels, pen = with_pen(SCENES["plain"]().pixels, "black", ACROSS, 20, strength)
    size = tuple(round(side * 8 / mpp) for side in pen.shape[::-1])
    pixels = np.asarray(
        Image.fromarray(pixels).resize(size, Image.Resampling.BOX if mpp > 8 else Image.Resampling.BICUBIC)
    )
    pen = np.asarray(Image.fromarray(pen).resize(size, Image.Resampling.NEAREST))
    found = map_tissue(Thumbnail(pixels, 1.0), "otsu", mpp)
    assert (found.pen & pen).sum() > 0.95 * pen.sum() and (found.tissue & pen).sum() < 0.02 * pen.sum()
    assert found.pen.sum() < 1.6 * pen.sum()


def test_a_dot_and_a_stroke_that_ends_at_the_frame_are_pen():
    pixels = np.random.default_rng(0).integers(236, 242, (200, 300, 3), np.uint8)
    y, x = np.mgrid[:200, :300]
    dot = (y - 60) ** 2 + (x - 80) ** 2 < 10**2  # 160 µm across
    stroke = (y > 100) & (abs(x - 200) < 8)
    pixels[dot | stroke] = (60, 40, 55)  # black, but with a cast of purple
    found = map_tissue(Thumbnail(pixels, 16.0), "otsu", 0.5)
    assert found.pen[dot | stroke].mean() > 0.98 and not found.dark.any() and not found.tissue.any()


def test_dark_tissue_thin_lines_and_pigment_are_no_pen():
    rng = np.random.default_rng(0)
    pixels = rng.integers(236, 242, (300, 300, 3), np.uint8)
    pixels[40:260, 40:260] = (92, 52, 128)  # lymphoid: density 1.0, 1.5, 0.6
    pixels[10:13] = 70  # 24 µm: the edge of a coverslip
    for y, x in rng.integers(60, 240, (40, 2)):
        pixels[y : y + 5, x : x + 5] = (38, 32, 36)  # grains of 40 µm: carbon
    found = map_tissue(Thumbnail(pixels, 16.0), "otsu", 0.5)
    assert not found.pen.any() and found.tissue[50:250, 50:250].mean() > 0.95
