"""The slide viewer: its tiles against means of level-0 pixels, what it refuses, and the page in a browser."""

import http.client
import io
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from map_pages import box, heard, hide_controls, open_browser, picture, until
from matplotlib import colormaps
from PIL import Image

from mil.maps.grid import score_grid
from mil.run.attention import attention_path, read_attention, write_attention
from mil.run.tables import read_predictions
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.viewer.server import rows_to_view, serve
from mil.viewer.tiles import read_tile, zooms
from tiling.jobs.errors import RequestError, SlideError
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide

WIDTH, HEIGHT, SIDE = 4750, 3100, 512
CORNERS = [(x, y) for y in range(-163, HEIGHT - SIDE, SIDE) for x in range(101, WIDTH, SIDE)]  # over two edges
MARKED = CORNERS.index((101 + 3 * SIDE, 3 * SIDE - 163))
WARMEST = np.array(colormaps["inferno"](255)[:3]) * 255


def _write_slide(path, size, corner, levels=1):
    """Bright noise, black in one square alone; further levels are means of 3 × 3 pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(240, 256, (size[1], size[0], 3), dtype=np.uint8)
    x, y = corner
    pixels[y : y + SIDE, x : x + SIDE] = 0
    with tifffile.TiffWriter(path) as tif:
        level = pixels
        for number in range(levels):
            more = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"} if number == 0 else {"subfiletype": 1}
            tif.write(level, photometric="rgb", tile=(256, 256), **more)
            whole = level[: len(level) // 3 * 3, : level.shape[1] // 3 * 3].astype(float)
            level = whole.reshape(whole.shape[0] // 3, 3, -1, 3, 3).mean((1, 3)).round().astype(np.uint8)
    return pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_cohort, write_features):
    """A trained run whose slide s00 is a file, with the marked patch scored highest; s01's file is damaged."""
    folder = tmp_path_factory.mktemp("viewer")
    table = make_cohort(folder / "f", slides=16)
    _write_slide(folder / "s00.tif", (WIDTH, HEIGHT), CORNERS[MARKED])
    (folder / "s01.svs").write_bytes(b"not a slide")
    shape = {"width_l0": WIDTH, "height_l0": HEIGHT, "patch_size_l0": SIDE}
    shape["slide_fingerprint"] = slide_fingerprint(folder / "s00.tif")
    write_features(folder / "f", "s00", np.random.default_rng(0).normal(size=(len(CORNERS), 8)), **shape)
    config = TrainConfig(folds=2, epochs=2, device="cpu")
    train_mil(folder / "f", table, "diagnosis", folder / "run", config)
    scores = np.linspace(-1, 0, len(CORNERS))
    scores[MARKED] = 3
    path = attention_path(folder / "run", "s00")
    logits = np.stack([-scores, scores], 1).astype(np.float32) / 2
    scored = {"patch_logits": logits, "contributions": logits}
    write_attention(path, replace(read_attention(path), coords=np.array(CORNERS), **scored))
    x, y = CORNERS[MARKED]
    ring = [[x, y], [x + SIDE, y], [x + SIDE, y + SIDE], [x, y + SIDE], [x, y]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "s00.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    rows = pd.read_csv(table)
    rows["path"] = [f"{folder}/s00.tif", f"{folder}/s01.svs"] + [""] * (len(rows) - 2)
    rows["annotation"] = [f"{folder}/s00.geojson"] + [""] * (len(rows) - 1)
    rows.to_csv(folder / "slides.csv", index=False)
    return folder / "run", folder / "slides.csv"


@pytest.fixture(scope="module")
def server(run):
    server = serve(run[0], rows_to_view(run[0], str(run[1])), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    headers = {name.capitalize(): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("levels", [1, 3])
def test_tiles_are_means_of_level_zero_pixels(tmp_path, levels):
    width, height = 1387, 1011
    pixels = _write_slide(tmp_path / "s.tif", (width, height), (301, 237), levels).astype(float)
    slide = open_slide(tmp_path / "s.tif")
    for zoom in range(zooms((width, height))):
        step, tiles = 256 * 2**zoom, []
        for y in range(0, height, step):
            tiles.append(np.hstack([read_tile(slide, zoom, x // step, y // step) for x in range(0, width, step)]))
        found = np.vstack(tiles)
        inside = pixels[: height >> zoom << zoom, : width >> zoom << zoom]
        mean = inside.reshape(height >> zoom, 2**zoom, width >> zoom, 2**zoom, 3).mean((1, 3))
        difference = np.abs(found[: height >> zoom, : width >> zoom] - mean)
        if levels == 1 or zoom < 2:
            assert difference.max() <= (1 if zoom else 0)  # rounded when read smaller, and at the end
        else:  # a coarser level is a mean already, whose pixels hold the edges of the square
            assert difference.mean() < 1.5 and np.median(difference) < 1
        assert (found[-(-height // 2**zoom) :] == 255).all() and (found[:, -(-width // 2**zoom) :] == 255).all()
    slide.close()


def test_layers_cover_exactly_the_marked_square_at_every_zoom(server):
    view = server.view("s00")
    classes, scores = ("tumour", "normal"), ("contribution", "patch log-odds")
    assert list(view.layers)[:5] == [*((s, c) for s in scores for c in classes), ("attention", "")]
    x, y = CORNERS[MARKED]
    for zoom in range(zooms((WIDTH, HEIGHT))):
        step = 256 * 2**zoom
        columns, rows = (range(max(0, at // step - 1), min(-(-end // step), (at + SIDE) // step + 2))
                         for at, end in ((x, WIDTH), (y, HEIGHT)))  # fmt: skip
        picture = np.vstack([np.hstack([view.tile(0, zoom, c, r) for c in columns]) for r in rows])
        warm = (np.abs(picture[..., :3].astype(float) - WARMEST).max(2) <= 2) & (picture[..., 3] > 0)
        left, top, right, bottom = box(warm) * 2**zoom + np.array([columns[0], rows[0]] * 2) * step
        assert np.abs(np.array([left - x, top - y, right - x - SIDE, bottom - y - SIDE])).max() <= 2**zoom
        first = box(view.tile(0, zoom, 0, 0)[..., 3])[:2] * 2**zoom
        assert np.abs(first - np.array([101, 0])).max() <= 2**zoom


def _view_of(run, tmp_path, **changes):
    """s00 as a table shows it whose row differs; files are named from the table's folder."""
    table = pd.read_csv(run[1]).head(1).assign(**changes)
    table.to_csv(tmp_path / "slides.csv", index=False)
    server = serve(run[0], rows_to_view(run[0], str(tmp_path / "slides.csv")), 0)
    server.server_close()
    return server.view("s00")


def test_another_file_of_the_same_size_gets_no_map(run, tmp_path):
    other = (run[1].parent / "s00.tif").read_bytes() + b"scanned again"
    (tmp_path / "s00.tif").write_bytes(other)
    assert _view_of(run, tmp_path).why == ""
    view = _view_of(run, tmp_path, path="s00.tif")
    assert "another file" in view.why and view.layers == {} and view.description()["size"] == (WIDTH, HEIGHT)


def test_a_head_that_says_nothing_of_a_patch_gets_no_map(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    provenance = tmp_path / "run" / "provenance.json"
    provenance.write_text(provenance.read_text().replace('"gated-abmil"', '"bag-stats"'))
    view = _view_of((tmp_path / "run", run[1]), tmp_path)
    assert "bag-stats says nothing of a single patch" in view.why and view.layers == {}


def test_maps_keep_their_place_where_the_scanner_saw_a_part_only(run, tmp_path, monkeypatch):
    whole = _view_of(run, tmp_path)
    monkeypatch.setattr("mil.viewer.views.bounds_of", lambda path: (1000, 500, 3000, 2000))
    part = _view_of(run, tmp_path)
    assert part.description()["bounds"] == (1000, 500, 3000, 2000) and part.size_l0 == whole.size_l0
    assert (part.tile(0, 1, 3, 2) == whole.tile(0, 1, 3, 2)).all() and part.tile(0, 1, 3, 2)[..., 3].any()


def test_an_annotation_that_is_none_is_named(run, tmp_path):
    (tmp_path / "a.geojson").write_text("[")
    with pytest.raises(SlideError, match=r"a\.geojson: not a GeoJSON file"):
        _view_of(run, tmp_path, annotation="a.geojson").description()


def test_a_slide_without_patches_has_empty_maps(run, tmp_path):
    view = _view_of(run, tmp_path)
    seen = replace(view.slide, attention=view.slide.attention[:0], coords=view.slide.coords[:0],
                   patch_logits=view.slide.patch_logits[:0], contributions=None)  # fmt: skip
    empty = replace(view, slide=seen)
    assert not empty.tile(0, 4, 0, 0).any() and empty.description()["layers"][0]["top"] == []
    assert np.isnan(score_grid(seen.coords, np.zeros(0), SIDE, (4, 5), 2.0)).all()


def test_what_is_served(run, server):
    status, body = ask(server, "/slides.json")
    slides = {slide["id"]: slide for slide in json.loads(body)}
    assert status == 200 and len(slides) == 16
    probability = read_predictions(run[0]).set_index("slide_id").loc["s00", "prob_tumour"]
    assert slides["s00"]["label"] == "normal" and slides["s00"]["right"] == (slides["s00"]["prediction"] == "normal")
    assert slides["s00"]["loss"] == pytest.approx(-np.log(1 - probability))
    figures = f"{probability:.2f}, loss {slides['s00']['loss']:.2f}"
    assert slides["s00"]["brief"] == f"normal, P(tumour) {figures}"
    assert slides["s00"]["said"].endswith(f": probability of tumour {figures}.")
    described = json.loads(ask(server, "/slides/s00.json")[1])
    assert described["size"] == [WIDTH, HEIGHT] and described["layers"][0]["ticks"][-1] == "3"
    first = described["layers"][0]["top"][0]
    assert (first["x"], first["y"]) == CORNERS[MARKED]
    patch = np.asarray(Image.open(io.BytesIO(ask(server, f"/patches/s00/{first['index']}.jpg")[1])))
    assert patch.max() < 30  # the black square and nothing else
    status, body = ask(server, "/slides/s01.json")
    assert status == 422 and b"s01.svs" in body
    status, body = ask(server, "/slides/s05.json")
    assert status == 422 and b"its path is empty" in body


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/slides.json", {"host": "evil.example"}, 403),
        ("/slides.json", {"host": "localhost:1"}, 403),
        ("/slides.json", {"origin": "http://evil.example"}, 403),
        ("/slides.json", {"origin": "null"}, 403),
        ("/slides.json", {"origin": "https://localhost"}, 403),
        ("/../provenance.json", {}, 404),
        ("/slides/../s00.json", {}, 404),
        ("/slides/...json", {}, 404),
        ("/slides/%2e%2e.json", {}, 404),
        ("//etc/passwd", {}, 404),
        ("/slides/unknown.json", {}, 404),
        ("/tiles/s00/0/9999999/0.jpg", {}, 404),
        ("/tiles/s00/99/0/0.jpg", {}, 404),
        ("/tiles/s00/0/-1/0.jpg", {}, 404),
        ("/tiles/s00/0/99999999999999999999/0.jpg", {}, 404),
        ("/layers/s00/999/0/0/0.png", {}, 404),
        ("/layers/s00/0/0/9999999/0.png", {}, 404),
        ("/layers/s00/999/bar.png", {}, 404),
        ("/patches/s00/999999999.jpg", {}, 404),
    ],
)
def test_what_is_refused(server, path, headers, status):
    assert ask(server, path, **headers)[0] == status
    assert ask(server, "/slides.json")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_get(server, method):
    assert ask(server, "/slides.json", method)[0] == 405


def test_it_listens_on_this_machine_alone_and_says_what_is_wrong(server, run):
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(RequestError, match=f"--port {server.server_port}: cannot be used"):
        serve(run[0], [], server.server_port)
    with pytest.raises(RequestError, match="no column 'path'"):
        rows_to_view(run[0], str(run[0].parent / "f" / "labels.csv"))


@pytest.fixture(scope="module")
def page(server):
    """The page in headless Chromium, and what its console said."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 800})
        said = heard(page)
        page.goto(f"{server.address}#s00")
        page.wait_for_selector("#top img")
        page.wait_for_load_state("networkidle")
        yield page, said


def test_the_page_zooms_toggles_and_finds_the_highest_patch(page):
    page, said = page
    assert "s00" in page.inner_text("#title") and page.locator("#slides li").count() == 16
    hide_controls(page)
    page.fill("#opacity", "100")
    page.uncheck("#annotated")
    warm = np.abs(picture(page) - WARMEST).max(2) < 40
    page.keyboard.press("m")
    assert not page.is_checked("#shown")
    black = picture(page).max(2) < 60  # the tissue alone
    assert np.abs(box(warm) - box(black)).max() <= 1
    x, y = CORNERS[MARKED]
    corners = page.evaluate(f"[[{y}, {x}], [{y + SIDE}, {x + SIDE}]].map(p => map.latLngToContainerPoint(p))")
    expected = [corners[0]["x"], corners[0]["y"], corners[1]["x"], corners[1]["y"]]
    assert np.abs(box(black) - expected).max() <= 1.5

    page.check("#shown")
    before = page.evaluate("map.getZoom()")
    page.locator("#map").focus()
    page.keyboard.press("+")
    until(page, f"map.getZoom() > {before} + .1")
    page.keyboard.press("0")
    until(page, f"Math.abs(map.getZoom() - {before}) < 1e-6")

    page.locator("#top button").first.click()
    page.wait_for_timeout(1500)
    centre = page.evaluate("map.getCenter()")
    assert (centre["lng"], centre["lat"]) == pytest.approx((x + SIDE / 2, y + SIDE / 2), abs=2)
    page.uncheck("#shown")
    marked = box(picture(page).max(2) < 60)
    assert np.abs((marked[:2] + marked[2:]) / 2 - (650 - 270 - 10, 400)).max() < 40  # in the middle of the map
    page.locator("#classes button", has_text="normal").click()
    assert "normal" in page.inner_text("#meaning") and page.inner_text("#ticks span:last-child") == "3"
    page.keyboard.press("c")
    assert "tumour" in page.inner_text("#meaning") and page.inner_text("#ticks span:last-child") == "3"
    page.keyboard.press("[")
    assert page.input_value("#opacity") == "90"
    page.select_option("#score", "attention")
    assert "attention" in page.inner_text("#meaning") and page.locator("#classes button").count() == 0
    assert said == []


def test_the_page_says_why_a_slide_cannot_be_shown(page):
    page, said = page
    page.locator("#slides button", has_text="s01").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "s01.svs" in page.inner_text("#problem") and page.inner_text("#title") == "s01"
    assert page.locator(".leaflet-tile").count() == 0 and page.is_hidden("#controls")
    page.locator("#slides button", has_text="s05").click()
    page.locator("#slides button", has_text="s00").click()  # before the answer for s05 has come
    until(page, "document.getElementById('title').textContent === 's00' && map !== null")
    page.wait_for_timeout(500)
    assert page.inner_text("#title") == "s00" and page.is_hidden("#problem") and page.is_visible("#controls")
    assert all("422" in line for line in said)


def test_the_page_on_a_narrow_dense_touch_screen(server, page):
    device = {"viewport": {"width": 400, "height": 800}, "device_scale_factor": 2, "has_touch": True}
    context = page[0].context.browser.new_context(**device)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.address}#s00")
    page.wait_for_selector("#top img")
    assert page.evaluate("scrollY") == 0
    page.locator("#top button").first.tap()
    page.wait_for_timeout(1500)
    page.uncheck("#shown")
    page.uncheck("#annotated")
    page.evaluate("mark.remove()")
    hide_controls(page)
    left, top, right, bottom = box(picture(page).max(2) < 60)
    assert any("/tiles/s00/1/" in url for url in asked)  # without a dense screen zoom 2 is the finest here
    middle = page.locator("#map").bounding_box()
    assert abs((left + right) / 2 - middle["width"]) <= 3 and abs((top + bottom) / 2 - middle["height"]) <= 3
    assert abs((right - left) - (bottom - top)) <= 2 < 200 < right - left
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    context.close()
