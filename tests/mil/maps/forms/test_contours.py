"""Outlines of the highest patches against unions of squares."""

from dataclasses import replace

import numpy as np
import shapely
from drawn_slides import drawn_of

from mil.maps.forms.contours import contours


def test_the_outline_of_a_patch_over_the_edge_is_whole(sticking_out):
    slide, corner = sticking_out
    highest = contours(drawn_of(slide))[-1]
    assert highest["properties"]["measurements"]["patches"] >= 1
    assert shapely.geometry.shape(highest["geometry"]).buffer(1).contains(shapely.box(*corner, *(corner + 512)))


def test_contours_count_from_the_bounds(marked):
    slide, _ = marked
    ranked = replace(slide, attention=np.arange(len(slide.coords), dtype=np.float32) + 1)
    drawn = drawn_of(ranked, bounds_l0=(1234, 1000, 7000, 5000))
    order = np.argsort(-drawn.scores.values)
    for share, feature in zip((0.5, 0.25, 0.1, 0.05, 0.01), contours(drawn), strict=True):
        top = slide.coords[order[: feature["properties"]["measurements"]["patches"]]] - (1234, 1000)
        assert abs(len(top) - share * len(order)) <= 1
        exact = shapely.unary_union([shapely.box(*c, *(c + 512)) for c in top])
        assert shapely.geometry.shape(feature["geometry"]).equals(exact)
