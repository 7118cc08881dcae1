"""Squares in level-0 pixels, by an independent parser."""

import json

import numpy as np
import pytest
import shapely
from drawn_slides import GRID, attention, drawn_of

from mil.maps.forms import geojson


def test_geojson_is_valid_and_in_level_zero_pixels(tmp_path):
    values = np.arange(1, len(GRID) + 1)
    slide = attention(GRID, values)
    geojson.write(tmp_path / "s.geojson", drawn_of(slide))
    written = json.loads((tmp_path / "s.geojson").read_text())
    assert written["type"] == "FeatureCollection" and written["slidemil"] == {"a": 1}
    for (x, y), weight, feature in zip(GRID, slide.attention, written["features"], strict=True):
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw and polygon.bounds == (x, y, x + 512, y + 512)
        measured = feature["properties"]["measurements"]
        assert measured["attention"] == pytest.approx(weight)
        assert measured["attention (x average)"] == pytest.approx(weight * len(GRID))
        assert measured["logit tumour"] == -measured["logit normal"]
        assert feature["properties"]["objectType"] == "detection"
    assert sum(f["properties"]["measurements"]["attention"] for f in written["features"]) == pytest.approx(1)


def test_no_patch_feature_is_lost():
    slide = attention(GRID, np.ones(len(GRID)))
    assert len(geojson.squares(drawn_of(slide))) == len(GRID)


def test_squares_over_the_edge_are_whole(sticking_out):
    """What was embedded is the whole square, so that is what is drawn, negative coordinates and all."""
    slide, corner = sticking_out
    hottest = max(geojson.squares(drawn_of(slide)), key=lambda f: f["properties"]["measurements"]["attention"])
    assert shapely.geometry.shape(hottest["geometry"]).bounds == (*corner, *(corner + 512))


def test_squares_count_from_the_bounds(marked):
    slide, corner = marked
    drawn = drawn_of(slide, bounds_l0=(1234, 1000, 7000, 5000))
    hottest = max(geojson.squares(drawn), key=lambda f: f["properties"]["measurements"]["attention"])
    assert hottest["properties"]["classification"]["name"] == "attention 10 of 10"
    x, y = corner - (1234, 1000)
    assert shapely.geometry.shape(hottest["geometry"]).bounds == (x, y, x + 512, y + 512)
