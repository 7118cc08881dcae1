"""The quality-control picture shows what was kept, to the pixel, and the page puts what is suspicious first."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tiling.patches import PatchStore
from tiling.qc_page import judge, write_qc_page
from tiling.qc_picture import MARGIN_PX, PATCH, describe, draw_qc, round_length, write_qc


@pytest.fixture(scope="module")
def tiled(command, phantom_slide, tmp_path_factory):
    """Output folder of a phantom and of a file that is no slide."""
    folder = tmp_path_factory.mktemp("private-folder")
    (folder / "phantom.svs").symlink_to(phantom_slide)
    (folder / "bad.svs").write_text("<script>alert(1)</script>")
    assert command("tile-slides", folder, "--out", folder / "out", "--patch-px", "256").returncode == 1
    return folder / "out"


def facts(name, **different):
    return {
        "slide_id": name, "digest": "d", "patches": 500, "width_l0": 9, "height_l0": 9, "mpp_l0": 0.25,
        "mpp_source": "openslide", "mpp": 0.5, "patch_size_px": 512, "patch_size_l0": 1024, "tissue_method": "otsu",
        "tissue_share": 0.4, "pen_share": 0.0, "median_sharpness": 500.0, "reader": "tiff", **different,
    }  # fmt: skip


def data_of(page):
    return json.loads(re.search(r"const data = (\{.*\});\n", page)[1])


def test_the_facts_are_those_of_the_store(tiled):
    store = PatchStore(tiled / "phantom.zarr")
    found = json.loads((tiled / "qc/phantom.json").read_text())
    assert found == describe(store) and found["patches"] == len(store.coords_l0) > 10
    assert found["tissue_share"] == store.tissue_mask.sum() / store.tissue_mask.size
    assert found["median_sharpness"] == np.median(store.scores["sharpness"])
    assert (found["mpp_l0"], found["mpp"], found["mpp_source"]) == (0.25, 0.5, "Aperio description")


def test_each_kept_patch_is_drawn_where_it_lies(tiled):
    store = PatchStore(tiled / "phantom.zarr")
    picture = np.asarray(draw_qc(store, describe(store))).astype(int)
    pixel_l0 = 4000 / 700  # the picture of a small slide is 700 px wide
    for x, y in store.coords_l0.tolist():
        left, top = round(x / pixel_l0) + MARGIN_PX, round(y / pixel_l0) + MARGIN_PX
        edge = picture[top, left + 5 : left + 80]
        inside = picture[top + 2 : top + 80, left + 3 : left + 80]
        assert np.abs(edge - PATCH).mean() < 70 < np.abs(inside - PATCH).mean()
    assert (picture[: MARGIN_PX - 1] == 255).all()


def test_a_picture_that_belongs_to_the_store_is_not_drawn_again(tiled, tmp_path):
    store = PatchStore(tiled / "phantom.zarr")
    write_qc(store, tmp_path)
    picture = tmp_path / "qc/phantom.jpg"
    before = picture.stat().st_mtime_ns
    write_qc(store, tmp_path)
    assert picture.stat().st_mtime_ns == before and Image.open(picture).size[0] > 700
    (tmp_path / "qc/phantom.json").write_text("{")
    write_qc(store, tmp_path)
    assert picture.stat().st_mtime_ns > before


def test_the_page_has_the_failure_first_no_folder_and_no_markup_of_others(tiled):
    page = (tiled / "qc.html").read_text()
    slides = data_of(page)["slides"]
    assert [s["slide_id"] for s in slides] == ["bad", "phantom"] and slides[0]["warnings"] == ["failed"]
    assert slides[0]["reason"].startswith("bad.svs: no reader opens it")
    assert "private-folder" not in page and "://" not in page  # loads nothing from anywhere
    (tiled / "failures-2-of-2.csv").write_text("slide_id,reason\nx,</script><b>/a/b c/secret/x.svs: damaged\n")
    write_qc_page(tiled)
    page = (tiled / "qc.html").read_text()
    assert "</script><b>" not in page and page.count("</script>") == 1 and "secret" not in page
    assert data_of(page)["slides"][1]["slide_id"] == "x"
    (tiled / "failures-2-of-2.csv").unlink()


def test_each_rule_speaks_for_the_slide_that_it_means_and_for_no_other():
    rng = np.random.default_rng(0)
    plain = [facts(f"s{i:02}", median_sharpness=float(rng.normal(500, 60))) for i in range(30)]
    odd = {
        "no patch": facts("a", patches=0, median_sharpness=None),
        "no tissue": facts("b", tissue_share=0.0),
        "all tissue": facts("c", tissue_share=0.99),
        "blurred": facts("d", median_sharpness=60.0),
        "pen": facts("e", pen_share=0.05),
        "odd scale": facts("f", mpp_l0=0.5),
        "few patches": facts("g", patches=12),
    }
    slides = judge([*plain, *odd.values()], {"h": "broken"})
    assert [(s["slide_id"], s["warnings"]) for s in slides[:8]] == [
        ("h", ["failed"]),
        *((f["slide_id"], [name]) for name, f in odd.items()),
    ]
    assert all(not s["warnings"] for s in slides[8:]) and len(slides) == 38
    assert judge([facts("u", mpp_l0=None)], {})[0]["warnings"] == ["odd scale"]
    assert judge([facts("all", tissue_method="all", tissue_share=1.0)], {})[0]["warnings"] == []
    assert judge([], {}) == []


def test_five_thousand_slides_fit_one_page(tmp_path):
    (tmp_path / "qc").mkdir()
    for i in range(5000):
        (tmp_path / f"qc/s{i}.json").write_text(json.dumps(facts(f"s{i}")))
    write_qc_page(tmp_path)
    assert len(data_of((tmp_path / "qc.html").read_text())["slides"]) == 5000
    assert (tmp_path / "qc.html").stat().st_size < 3e6


@pytest.mark.parametrize(
    ("length", "label"), [(999, "500 µm"), (1000, "1 mm"), (2000, "2 mm"), (4999, "2 mm"), (0.7, "0.5 µm")]
)
def test_scale_bars_have_round_lengths(length, label):
    assert round_length(length, "µm")[1] == label and round_length(length, "µm")[0] <= length
