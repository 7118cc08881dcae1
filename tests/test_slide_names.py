"""Slides whose names hold spaces, brackets, percent signs and letters of all kinds, from their folder to every page."""

import csv
import json
import threading
import unicodedata
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import tifffile
from map_pages import heard, open_browser, until
from skimage.data import immunohistochemistry

import features
import mil
import tiling
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.maps.forms.registry import FORMS, load_form
from mil.viewer.server import rows_to_view, serve
from tiling.jobs.terminal import Terminal
from tiling.manifest import load_slides

NAMES = [
    "S21-1234 A1 (2)",
    "[bold] {z} #1",
    "[12]",
    "1",
    "50% %41 %2e ~x",
    "x + y; z, 'q' $^$ !@=`",
    "Präparat é ß & co",
    "標本 β",
]
pytestmark = pytest.mark.long  # what is made for all of them
ODD = "[bold] {z} #1"
MEASURED = [ODD, "Präparat é ß & co"]  # whose maps' faithfulness is measured, which takes long


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All steps over a folder without a table but for the labels; the slides lie in `slides`."""
    out = tmp_path_factory.mktemp("names")
    (out / "slides").mkdir()
    tissue = np.tile(immunohistochemistry(), (2, 2, 1))
    for shift, name in enumerate(NAMES):
        file = out / "slides" / unicodedata.normalize("NFD", f"{name}.tif")
        how = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "tile": (256, 256)}
        tifffile.imwrite(file, np.roll(tissue, 32 * shift, 1), photometric="rgb", **how)
    assert tiling.tile(out / "slides", out / "patches", tissue="all", mpp="native").counts == {"done": len(NAMES)}
    how = {"encoder": "resnet18", "weights": "random", "device": "cpu"}
    assert features.extract(out / "patches", out / "features", **how).counts == {"done": len(NAMES)}
    table = pd.DataFrame({"slide_id": NAMES, "diagnosis": ["normal", "tumour"] * 4})
    table["path"] = [unicodedata.normalize("NFD", f"slides/{name}.tif") for name in NAMES]
    table.to_csv(out / "slides.csv", index=False)
    how = {
        "folds": 2,
        "inner_folds": 0,
        "epochs": 1,
        "device": "cpu",
        "patches": str(out / "patches"),
        "bootstrap": 100,
    }
    mil.train(out / "features", out / "slides.csv", "diagnosis", out / "run", **how)
    rows = load_slides(out / "slides.csv")
    for measured in (True, False):
        config = HeatmapConfig(formats=",".join(FORMS), faithfulness=measured, device="cpu", workers=1)
        some = [row for row in rows if (row.slide_id in MEASURED) == measured]
        drawn = export_heatmaps(out / "run", out / "features", some, config, out / "heatmaps")
        assert drawn.counts == {"done": len(some)}, drawn.table()
    return out


def test_every_file_has_the_name_of_its_slide(made):
    endings = [load_form(name).ENDING for name in FORMS]
    for folder, ending in [("patches", ".zarr"), ("features", ".h5"), ("run/attention", ".h5"), ("patches/qc", ".jpg"),
                           ("run/pictures/patches", ".jpg"), *(("heatmaps", e) for e in endings)]:  # fmt: skip
        assert {f"{name}{ending}" for name in NAMES} <= {path.name for path in (made / folder).iterdir()}
    measured = {f"{name}.faithfulness.{ending}" for name in MEASURED for ending in ("json", "png")}
    assert measured <= {path.name for path in (made / "heatmaps").iterdir()}
    assert not [path for path in made.rglob(".*")]


def test_tables_hold_the_names_as_they_are(made):
    for file in ("splits.csv", "predictions.csv"):
        with (made / "run" / file).open(encoding="utf-8", newline="") as lines:
            assert {row["slide_id"] for row in csv.DictReader(lines)} == set(NAMES), file
    assert set(json.loads((made / "patches/summary.json").read_text())["slides"]) == set(NAMES)
    table = mil.predict(made / "run", made / "features").table
    assert set(table["slide_id"]) == set(NAMES) and table["in_training"].all()
    splits = (made / "run/splits.csv").read_text(encoding="utf-8")
    (made / "splits.csv").write_text(unicodedata.normalize("NFD", splits), encoding="utf-8")
    again = {"splits": str(made / "splits.csv"), "epochs": 1, "device": "cpu", "bootstrap": 100}
    run = mil.train(made / "features", made / "slides.csv", "diagnosis", made / "again", **again)
    assert run.splits.equals(mil.Run(made / "run").splits)
    for name in NAMES:
        assert mil.Run(made / "run").attention(name).slide_id == name
        geojson = json.loads((made / f"heatmaps/{name}.geojson").read_text(encoding="utf-8"))
        assert len(geojson["features"]) == 4


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp"])
def test_other_tools_get_the_names_and_give_them_back(made, tmp_path, layout):
    assert features.convert(made / "features", tmp_path / layout, layout).counts == {"done": len(NAMES)}
    for file in list((tmp_path / layout).rglob("*.h5")):  # as macOS may have written them
        file.rename(file.with_name(unicodedata.normalize("NFD", file.name)))
    assert features.convert(tmp_path / layout, tmp_path / "back", "slidemil").counts == {"done": len(NAMES)}
    for name in NAMES:
        ours, back = (features.read(folder / f"{name}.h5") for folder in (made / "features", tmp_path / "back"))
        assert back.info.slide_id == name and (back.coords_l0 == ours.coords_l0).all()


def test_a_terminal_shows_a_name_in_brackets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / f"{ODD}.tif").write_bytes(b"not a slide")
    from tiling.all_slides import tile_slides

    tile_slides(load_slides(tmp_path), tiling.TilingConfig(), tmp_path / "out", Terminal("tile"))
    assert ODD in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(made):
    server = serve(made / "run", rows_to_view(made / "run", str(made / "slides.csv")), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_the_viewer_serves_each_slide_by_its_encoded_name(server, name):
    def ask(path):
        with urlopen(server.address + path) as answer:
            return answer.read()

    said = quote(name, safe="")
    assert json.loads(ask(f"slides/{said}.json"))["id"] == name
    for path in (f"tiles/{said}/0/0/0.jpg", f"patches/{said}/3.jpg"):
        assert ask(path)[:2] == b"\xff\xd8"
    for path in (f"layers/{said}/0/0/0/0.png", f"layers/{said}/0/bar.png"):
        assert ask(path)[:4] == b"\x89PNG"


@pytest.mark.parametrize("path", ["%2e%2e", "..%2f..%2fslides", "1%2f", "%31%00", "%ff", "%2531", "x%2", "%5b12"])
def test_the_viewer_decodes_a_name_once_and_makes_no_path_of_it(server, path):
    assert json.loads(urlopen(f"{server.address}slides/%31.json").read())["id"] == "1"
    for address in (f"slides/{path}.json", f"tiles/{path}/0/0/0.jpg", f"patches/{path}/0.jpg"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(server.address + address)


def test_pages_find_their_pictures_and_the_viewer_its_tiles(made, server):
    with open_browser() as browser:
        for page_of in ("heatmaps/index.html", "run/report.html", "patches/qc.html"):
            page = browser.new_page(viewport={"width": 1300, "height": 4000})
            said = heard(page)
            page.goto((made / page_of).as_uri())
            until(page, "document.images.length >= 8 && [...document.images].every(i => i.complete && i.naturalWidth)")
            assert said == []
            assert all(name in page.inner_text("body") for name in NAMES), page_of
        page.goto((made / "heatmaps/index.html").as_uri())
        for card in page.locator("article").all():
            for address in card.locator("a").evaluate_all("links => links.map(a => a.href)"):
                with urlopen(address) as file:
                    assert file.read(1)
        page.goto((made / f"heatmaps/{ODD}.html").as_uri())
        assert page.inner_text("h1") == ODD
        page = browser.new_page()
        said = heard(page)
        for name in NAMES:
            page.goto(f"{server.address}#{quote(name, safe='')}")
            page.reload()  # another fragment alone loads no page
            page.wait_for_selector("#top img")
            page.wait_for_load_state("networkidle")
            assert page.inner_text("#title") == name
            until(page, "document.querySelectorAll('.leaflet-tile-loaded').length >= 2")
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert said == []
