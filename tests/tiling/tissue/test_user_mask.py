import json

import numpy as np
import pytest
import shapely
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.tissue.polygons import rasterise, read_polygons
from tiling.tissue.user_mask import read_user_mask

WIDTH_L0, HEIGHT_L0, DOWNSAMPLE = 4003, 3001, 16.0
SHAPE = (188, 251)  # the last row and column stick out over the slide


def feature(geometry):
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}


def written(tmp_path, content, name="mask.geojson"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(path):
    return read_user_mask(path, SHAPE, WIDTH_L0, HEIGHT_L0, DOWNSAMPLE)


def blob(rng, x, y, radius, n):
    angle = np.sort(rng.uniform(0, 2 * np.pi, n))
    reach = radius * rng.uniform(0.5, 1, n)
    return shapely.Polygon(np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], 1)).buffer(0)


def by_shapely(area, shape, downsample):
    x, y = np.meshgrid((np.arange(shape[1]) + 0.5) * downsample, (np.arange(shape[0]) + 0.5) * downsample)
    return shapely.contains_xy(area, x, y)


def test_polygons_with_holes_equal_shapelys_at_every_pixel_centre(tmp_path):
    rng = np.random.default_rng(5)
    for trial in range(20):
        areas = [blob(rng, *rng.uniform(-200, 4200, 2), rng.uniform(50, 1500), 60) for _ in range(3)]
        area = shapely.unary_union(areas) - blob(rng, *rng.uniform(500, 3000, 2), 600, 40)
        mask = rasterise(
            read_polygons(written(tmp_path, feature(shapely.geometry.mapping(area)))), SHAPE, DOWNSAMPLE + trial / 7
        )
        assert mask.any()
        np.testing.assert_array_equal(mask, by_shapely(area, SHAPE, DOWNSAMPLE + trial / 7))


def test_the_three_forms_of_geojson_say_the_same(tmp_path):
    square = feature({"type": "Polygon", "coordinates": [[[160, 320], [480, 320], [480, 640], [160, 640], [160, 320]]]})
    expected = np.zeros(SHAPE, bool)
    expected[20:40, 10:30] = True
    for content in (square, [square], {"type": "FeatureCollection", "features": [square]}):
        np.testing.assert_array_equal(read(written(tmp_path, content)), expected)


def test_overlapping_polygons_add_up_and_a_multipolygon_keeps_its_holes(tmp_path):
    def ring(x0, y0, x1, y1):
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]

    outer, hole, island = ring(0, 0, 1600, 1600), ring(320, 320, 1280, 1280), ring(640, 640, 960, 960)
    multi = feature({"type": "MultiPolygon", "coordinates": [[outer, hole], [island]]})
    over = feature({"type": "Polygon", "coordinates": [ring(800, 0, 2400, 160)]})
    mask = read(written(tmp_path, [multi, over]))
    assert mask.sum() == 100**2 - 60**2 + 20**2 + 50 * 10
    assert not mask[30, 30] and mask[50, 50] and mask[5, 120] and mask[5, 60]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a GeoJSON file"),
        ("3", "not GeoJSON features"),
        ({"type": "Topology", "objects": {}}, "found type 'Topology', expected FeatureCollection"),
        ({"type": "FeatureCollection"}, "no 'features'"),
        (feature({"type": "GeometryCollection", "geometries": []}), "type 'GeometryCollection', expected Polygon"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "type 'Point', expected Polygon or MultiPolygon"),
        (feature(None), "not GeoJSON features"),
        (feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}), "at least three points"),
        (feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, None]]]}), "finite numbers"),
        ({"type": "FeatureCollection", "features": []}, "covers no pixel"),
        (feature({"type": "Polygon", "coordinates": [[[9e4, 0], [9e4, 9e3], [9.9e4, 0]]]}), "level-0 pixels"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_reason(tmp_path, content, said):
    with pytest.raises(SlideError, match=r"mask\.geojson: ") as error:
        read(written(tmp_path, content))
    assert said in str(error.value)


def halves(width, height):
    """Left half 1, right half 0."""
    return np.repeat((np.arange(width) < width / 2)[None], height, 0).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(4003, 3001), (801, 601), (200, 150)])
def test_a_png_of_any_mode_and_size_lands_on_the_grid(tmp_path, mode, size):
    marked = halves(*size)
    if mode == "RGBA":  # white paper, painted where it is not transparent
        picture = Image.fromarray(np.dstack([np.full((*marked.shape, 3), 255, np.uint8), marked * 255]))
    elif mode == "P":
        picture = Image.fromarray(marked).convert("P")
        picture.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)  # the index counts, not its colour
        picture.putdata(marked.ravel().tolist())
    else:
        picture = Image.fromarray(marked * 255).convert(mode)
    picture.save(tmp_path / "mask.png")
    mask = read(tmp_path / "mask.png")
    centres_l0 = (np.arange(SHAPE[1]) + 0.5) * DOWNSAMPLE
    off = np.abs(centres_l0 - WIDTH_L0 / 2) > WIDTH_L0 / size[0]  # nearer to the border than its pixels says nothing
    assert mask.shape == SHAPE and off.mean() > 0.95
    np.testing.assert_array_equal(mask[:, off], np.repeat((centres_l0 < WIDTH_L0 / 2)[None, off], SHAPE[0], 0))


def test_rounded_sides_pass_and_another_aspect_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    for size in [(40, 30), (13, 10), (403, 300), (397, 300)]:  # 4003 × 3001 reduced and rounded, or less than 1 % off
        Image.fromarray(halves(*size) * 255).save(path)
        assert 0.4 < read(path).mean() < 0.6
    for size in [(300, 400), (410, 300), (400, 310)]:
        Image.fromarray(halves(*size) * 255).save(path)
        with pytest.raises(SlideError, match=r"mask\.png: found a mask of .*expected the slide's, 4003 × 3001 px"):
            read(path)


def test_pngs_that_cannot_be_masks_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.ones((300, 400), np.uint16)).save(path)
    with pytest.raises(SlideError, match="mode I;16, expected one of 1, L, P"):
        read(path)
    path.write_bytes(b"no picture")
    with pytest.raises(SlideError, match=r"mask\.png: this PNG cannot be read"):
        read(path)
    Image.fromarray(halves(400, 300) * 255).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SlideError, match=r"mask\.png: this PNG cannot be read"):
        read(path)
    Image.new("L", (400, 300)).save(path)
    with pytest.raises(SlideError, match="covers no pixel of the slide"):
        read(path)
    with pytest.raises(SlideError, match=r"mask\.tif: a tissue mask is .geojson, .json or .png, found '.tif'"):
        read(tmp_path / "mask.tif")
    with pytest.raises(SlideError, match=r"gone\.geojson: cannot be read"):
        read(tmp_path / "gone.geojson")
