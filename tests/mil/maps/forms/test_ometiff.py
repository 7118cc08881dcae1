"""The pyramid as OpenSlide, tifffile and an OME validator see it."""

import math

import numpy as np
import ome_types
import openslide
import pytest
import tifffile
from drawn_slides import drawn_of
from matplotlib import colormaps

from mil.maps.forms import ometiff


def warm_square(pixels, corner, side, downsample):
    """The marked patch's overlaps are averaged with its neighbours; its middle, in none of them, is the warmest."""
    warmest = np.array(colormaps["inferno"](255)[:3]) * 255
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - warmest).max(2) <= 4)
    overlap = 512 - 384
    edges = [(columns.min(), corner[0] + overlap), (columns.max() + 1, corner[0] + 384)]
    edges += [(rows.min(), corner[1] + overlap), (rows.max() + 1, corner[1] + 384)]
    for found, l0 in edges:
        assert abs(found * downsample - l0) <= downsample
    assert len(rows) == np.ptp(edges[:2], axis=0)[0] * np.ptp(edges[2:], axis=0)[0]


@pytest.mark.parametrize("origin", [(0, 0), (1234, 1000)])
def test_every_level_of_the_ome_tiff_shows_the_marked_patch_where_it_is(tmp_path, marked, origin):
    slide, corner = marked
    bounds = None if origin == (0, 0) else (*origin, 7000, 5000)
    path = tmp_path / "s.ome.tiff"
    drawn = drawn_of(slide, bounds_l0=bounds, provenance={"µ": [1]})
    ometiff.write(path, drawn)
    assert ometiff.read_provenance(path, drawn) == {"µ": [1]}
    width, height = (9999, 6789) if bounds is None else (7000, 5000)
    levels = tifffile.TiffFile(path).series[0].levels
    with openslide.OpenSlide(path) as opened:
        assert opened.level_count == len(levels) >= 1
        assert opened.dimensions == (math.ceil(width / 64), math.ceil(height / 64))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.2527 * 64)
        for number, level in enumerate(levels):
            pixels = level.asarray()
            assert pixels.shape[1::-1] == opened.level_dimensions[number]
            read = np.asarray(opened.read_region((0, 0), number, opened.level_dimensions[number]))
            assert (read[..., :3] == pixels).all()
            if number == 0:
                warm_square(pixels, corner - origin, 512, 64)
    assert bounds or (pixels[-1, -1] == 255).all()  # no patch there: white, as glass


def test_a_patch_over_the_edge_is_shown_where_it_lies_on_the_slide(tmp_path, sticking_out):
    slide, corner = sticking_out
    ometiff.write(tmp_path / "s.ome.tiff", drawn_of(slide))
    pixels = tifffile.TiffFile(tmp_path / "s.ome.tiff").series[0].levels[0].asarray().astype(int)
    assert pixels.shape[1::-1] == (math.ceil(9999 / 64), math.ceil(6789 / 64))
    warmest = np.array(colormaps["inferno"](255)[:3]) * 255
    rows, columns = np.nonzero(np.abs(pixels - warmest).max(2) <= 4)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 64
    expected = np.clip([*corner, *(corner + 512)], 0, [9999, 6789] * 2)
    assert np.abs(found - expected).max() <= 64


def test_the_ome_xml_is_valid(tmp_path, marked):
    slide, _ = marked
    ometiff.write(tmp_path / "s.ome.tiff", drawn_of(slide, "logit"))
    pixels = ome_types.from_tiff(tmp_path / "s.ome.tiff", validate=True).images[0].pixels
    assert (pixels.size_x, pixels.size_y, pixels.physical_size_x) == (157, 107, pytest.approx(0.2527 * 64))
