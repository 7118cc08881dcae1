"""The quality-control picture shows what was kept, to the pixel, and the page puts what is suspicious first."""

import json
import os
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from tiling import pipeline
from tiling.config import TilingConfig
from tiling.jobs.locks import lock
from tiling.manifest import SlideRow
from tiling.qc import picture
from tiling.qc.facts import FORMAT, VERSION, PictureSize, SlideFacts, asdict, read_facts
from tiling.qc.page import failures, page_data, write_qc_page
from tiling.qc.picture import PATCH, PEN, TISSUE, draw_qc, round_length, write_qc
from tiling.qc.rules import RULES, judge
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, write_store
from tiling.tissue.tissue import TissueMap

GOLDEN = Path(__file__).parents[2] / "golden" / "patches-v1.zarr"
GLASS = (240, 235, 238)


@pytest.fixture(scope="module")
def tiled(command, phantom_slide, tmp_path_factory):
    """Output folder of a phantom and of a file that is no slide."""
    folder = tmp_path_factory.mktemp("private-folder")
    (folder / "phantom.svs").symlink_to(phantom_slide)
    (folder / "bad.svs").write_text("<script>alert(1)</script>")
    assert command("tile-slides", folder, "--out", folder / "out", "--patch-px", "256").returncode == 1
    return folder / "out"


@pytest.fixture
def drawn_store(tiled, tmp_path):
    """A store with known masks and three patches; a pixel of its picture is 8 level-0 pixels wide."""
    info = replace(
        PatchStore(tiled / "phantom.zarr").info,
        slide_id="drawn", width_l0=9600, height_l0=6400, thumbnail_downsample=32.0, patch_size_l0=512,
    )  # fmt: skip
    info = replace(info, config={**info.config, "pixels": "reference"})
    tissue, pen = np.zeros((200, 300), bool), np.zeros((200, 300), bool)
    tissue[40:160, 50:250] = True
    pen[10:20, 10:60] = True
    coords = np.array([[2400, 1920], [2912, 1920], [4000, 3200]], np.int64)
    path = tmp_path / "drawn.zarr"
    write_store(
        path, info, Candidates(coords, {name: np.ones(3, np.float32) for name in AREA_SCORES}),
        TissueMap(tissue, pen, np.zeros_like(pen), ~tissue), np.full((200, 300, 3), GLASS, np.uint8),
        [MadePatch(i, 100.0 * 3**i, b"") for i in range(3)],
    )  # fmt: skip
    return PatchStore(path)


def facts(name, **different):
    plain = SlideFacts(
        slide_id=name, digest="d", patches=500, width_l0=9, height_l0=9, mpp_l0=0.25, mpp_source="openslide", mpp=0.5,
        patch_size_px=512, patch_size_l0=1024, tissue_method="otsu", tissue_share=0.4,
        tissue_covered=0.97, pen_share=0.0, inked_share=0.0,
        median_sharpness=500.0, reader="tiff", picture=PictureSize(1200, 900, 80.0),
    )  # fmt: skip
    return replace(plain, **different)


def rows_of(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


def is_near(pixel, colour, limit=60):
    return np.abs(np.asarray(pixel, int) - colour).max() <= limit


def test_the_facts_are_those_of_the_store(tiled):
    group = zarr.open_group(tiled / "phantom.zarr", mode="r")
    found = json.loads((tiled / "qc/phantom.json").read_text())
    tissue = np.asarray(group["tissue_mask"])
    assert found["patches"] == group["coords_l0"].shape[0] > 10
    assert found["tissue_share"] == pytest.approx((tissue == 1).sum() / tissue.size) and 0.1 < found["tissue_share"] < 1
    assert found["median_sharpness"] == pytest.approx(float(np.median(np.asarray(group["sharpness"]))))
    assert (found["mpp_l0"], found["mpp"], found["mpp_source"]) == (0.25, 0.5, "Aperio description")
    assert (found["patch_size_px"], found["patch_size_l0"], found["reader"]) == (256, 512, "tiff")
    assert (found["format"], found["version"], found["digest"]) == (FORMAT, VERSION, group.attrs["digest"])
    with Image.open(tiled / "qc/phantom.jpg") as picture:
        assert picture.height > found["picture"]["height_px"] and picture.width >= found["picture"]["width_px"]


def test_shares_and_median_are_counted_by_hand(drawn_store):
    _, found = draw_qc(drawn_store)
    assert found.tissue_share == pytest.approx(120 * 200 / 60000) and found.pen_share == pytest.approx(500 / 60000)
    assert found.inked_share == pytest.approx(500 / 24500) and found.median_sharpness == 300
    assert found.picture == PictureSize(1200, 800, 8.0) and found.patch_size_um == 128


def test_squares_outline_and_pen_stand_at_their_pixels(drawn_store):
    picture = np.asarray(draw_qc(drawn_store)[0]).astype(int)
    marked = [x for x in range(290, 440) if not is_near(picture[270, x], GLASS, 2)]
    assert marked == [300, 364, 428]  # two neighbours share the line in the middle
    assert [y for y in range(230, 320) if not is_near(picture[y, 330], GLASS, 2)] == [240, 304]
    assert [x for x in range(490, 580) if not is_near(picture[430, x], GLASS, 2)] == [500, 564]
    assert all(is_near(picture[270, x], PATCH, 30) for x in (300, 364, 428))
    yellow = [x for x in range(0, 1200) if is_near(picture[500, x], TISSUE, 10)]
    assert yellow == [201, 202, 997, 998]
    assert [y for y in range(0, 800) if is_near(picture[y, 700], TISSUE, 10)] == [161, 162, 637, 638]
    pen = np.argwhere((np.abs(picture[:800] - PEN) <= 2).all(2))
    assert pen.min(0).tolist() == [40, 40] and pen.max(0).tolist() == [79, 239]


def test_a_patch_over_the_edge_is_drawn_as_far_as_the_slide_goes(drawn_store, tmp_path):
    """A pixel of the picture is 8 level-0 pixels wide."""
    info, path = replace(drawn_store.info, slide_id="edge"), tmp_path / "edge.zarr"
    coords = np.array([[-256, -160], [9600 - 200, 6400 - 304]], np.int64)
    areas = {name: np.ones(2, np.float32) for name in AREA_SCORES}
    empty, glass = np.zeros((200, 300), bool), np.full((200, 300, 3), GLASS, np.uint8)
    made = [MadePatch(i, 1.0, b"") for i in range(2)]
    write_store(path, info, Candidates(coords, areas), TissueMap(*[empty] * 4), glass, made)
    picture = np.asarray(draw_qc(PatchStore(path))[0]).astype(int)
    assert [x for x in range(200) if not is_near(picture[20, x], GLASS, 2)] == [0, 32]
    assert [y for y in range(200) if not is_near(picture[y, 20], GLASS, 2)] == [0, 44]
    assert [x for x in range(1000, 1200) if not is_near(picture[780, x], GLASS, 2)] == [1175, 1199]
    assert [y for y in range(600, 800) if not is_near(picture[y, 1190], GLASS, 2)] == [762, 799]


def test_the_written_picture_has_the_squares_within_a_pixel(drawn_store, tmp_path):
    write_qc(drawn_store, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "qc/drawn.jpg")).astype(int)
    for expected in (300, 364, 428):
        off = np.abs(picture[246:298, expected - 4 : expected + 5] - PATCH).sum(2).mean(0)
        assert abs(int(off.argmin()) - 4) <= 1 and off.min() < 150 < off[[0, 8]].min()


def test_twenty_thousand_patches_stay_readable(drawn_store):
    """Squares of a few pixels keep most of the slide's light, and tell kept from not kept."""
    x, y = np.meshgrid(np.arange(1600, 8000, 40), np.arange(1280, 5120, 40))
    drawn_store.coords_l0 = np.stack([x.ravel(), y.ravel()], 1)
    drawn_store.info = replace(drawn_store.info, patch_size_l0=40)
    assert len(drawn_store.coords_l0) > 15000
    picture = np.asarray(draw_qc(drawn_store)[0].convert("L")).astype(int)
    inside = picture[200:600, 250:950].mean()
    assert 150 < inside < picture[100:150, 250:950].mean() - 10


@pytest.mark.parametrize("shape", [(3, 400), (400, 3), (1, 1), (2000, 1700)])
def test_slides_of_any_shape_are_drawn(drawn_store, tmp_path, shape):
    path = shutil.copytree(drawn_store.path, tmp_path / "odd.zarr")
    group = zarr.open_group(path)
    for name in ("thumbnail", "tissue_mask", "pen_mask"):
        values = np.ones((*shape, 3) if name == "thumbnail" else shape, np.uint8)
        group.create_array(name, data=values, overwrite=True)
    store = PatchStore(path)
    store.coords_l0 = np.array([[0, 0], [32 * shape[1] - 4, 32 * shape[0] - 4]])  # a patch less than a pixel wide
    store.info = replace(store.info, patch_size_l0=4)
    picture, found = draw_qc(store)
    assert max(found.picture.width_px, found.picture.height_px) == min(1200, 4 * max(shape))
    assert picture.width <= 1200 and found.tissue_share == 1


def test_a_slide_without_a_scale_has_its_bar_in_pixels(drawn_store):
    scaled, _ = draw_qc(drawn_store)
    drawn_store.info = replace(drawn_store.info, mpp_l0=float("nan"), mpp=float("nan"), mpp_source="unknown")
    picture, found = draw_qc(drawn_store)
    assert found.mpp is None and found.mpp_l0 is None and found.patch_size_um is None
    bar = (10 + 8, 800 - 10 - 11)
    lengths = [next(n for n in range(400) if sum(p.getpixel((bar[0] + n, bar[1]))) > 300) for p in (scaled, picture)]
    assert lengths == [200 / 0.25 / 8, 1000 / 8]  # 200 µm; 1,000 px of level 0; both at most a fifth of 1,200


def test_a_store_of_version_1_is_drawn():
    picture, found = draw_qc(PatchStore(GOLDEN))
    assert found.pen_share == 0 and picture.width >= 620


def test_a_picture_is_drawn_again_where_it_is_missing_damaged_or_older(drawn_store, tmp_path):
    picture, written = tmp_path / "qc/drawn.jpg", tmp_path / "qc/drawn.json"

    def is_drawn_again():
        before = picture.stat().st_mtime_ns if picture.exists() else 0
        write_qc(drawn_store, tmp_path)
        return picture.stat().st_mtime_ns != before

    assert is_drawn_again() and not is_drawn_again()
    picture.unlink()
    assert is_drawn_again() and not is_drawn_again()
    written.write_text("{")
    assert is_drawn_again() and not is_drawn_again()
    written.write_text(written.read_text().replace(drawn_store.digest, "0" * 64))
    assert is_drawn_again() and not is_drawn_again()
    os.utime(picture, (1, 1))
    assert is_drawn_again() and not is_drawn_again()


def test_what_is_not_whole_never_has_the_final_name(drawn_store, tmp_path, monkeypatch):
    folder = tmp_path / "qc"
    folder.mkdir()
    left, others = folder / ".drawn.jpg.tmp-1-ab", folder / ".drawn.b.jpg.tmp-1-ab"
    left.touch()
    others.touch()  # of another slide, which another process may be writing

    def broken(self, file, *arguments, **how):
        Path(file).write_bytes(b"half")
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", broken)
        with pytest.raises(OSError, match="disk"):
            write_qc(drawn_store, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [others.name]
    write_qc(drawn_store, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [others.name, "drawn.jpg", "drawn.json"]


def test_brackets_in_a_name_are_no_pattern(drawn_store, tmp_path):
    drawn_store.info = replace(drawn_store.info, slide_id="[ab]")
    (tmp_path / "qc").mkdir()
    for name in (".[ab].jpg.tmp-1-1", ".a.jpg.tmp-1-1"):
        (tmp_path / "qc" / name).touch()
    write_qc(drawn_store, tmp_path)
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == [".a.jpg.tmp-1-1", "[ab].jpg", "[ab].json"]


def test_a_picture_that_cannot_be_drawn_does_not_fail_its_slide(phantom_slide, tmp_path, monkeypatch):
    def broken(store):
        raise RuntimeError("no ink")

    monkeypatch.setattr(picture, "draw_qc", broken)
    config = TilingConfig(patch_px=256, workers=1)
    outcome = pipeline.tile_slide(SlideRow("s", phantom_slide), config, tmp_path)
    assert outcome.status == "done" and outcome.patches == len(PatchStore(tmp_path / "s.zarr")) > 10
    assert outcome.warning == "the quality-control picture of s was not made (RuntimeError: no ink)"
    monkeypatch.undo()
    assert pipeline.tile_slide(SlideRow("s", phantom_slide), config, tmp_path).status == "skipped"
    assert (tmp_path / "qc/s.jpg").exists()


def test_the_page_has_the_failure_first_no_folder_and_no_markup_of_others(tiled, tmp_path):
    page = (tiled / "qc.html").read_text()
    rows = rows_of(page)
    assert [(r["slide_id"], r["patches"]) for r in rows] == [
        ("bad", None),
        ("phantom", len(PatchStore(tiled / "phantom.zarr"))),
    ]
    assert rows[0]["warned"][0][1].startswith("bad.svs: no reader opens it")
    assert "private-folder" not in page and str(tiled) not in page
    assert not re.search(r"(?:https?:)?//[a-z]", page), "loads something from elsewhere"
    out = shutil.copytree(tiled, tmp_path / "out")
    (out / "failures-2-of-2.csv").write_text("slide_id,reason\nx,</script><b>'/a/b c/secret/x.svs': damaged\n")
    write_qc_page(out)
    page = (out / "qc.html").read_text()
    assert page.count("</script>") == 2 and "<b>" not in page and "secret" not in page
    assert [r["slide_id"] for r in rows_of(page)] == ["bad", "x", "phantom"]


def test_a_failure_that_was_mended_later_is_not_shown(tmp_path):
    def write(name, text, at_s):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (at_s, at_s))

    write("failures-1-of-2.csv", 'slide_id,reason\na,"x, ""y""\nz"\nb,old\nc,old\n', 100)
    write("summary-1-of-2.json", json.dumps({"slides": {n: {"status": "failed"} for n in "abc"}}), 100)
    assert failures(tmp_path) == {"a": 'x, "y"\nz', "b": "old", "c": "old"}
    write("summary.json", json.dumps({"slides": {"a": {"status": "done"}, "b": {"status": "failed"}}}), 200)
    write("failures.csv", "slide_id,reason\nb,new\n", 201)
    assert failures(tmp_path) == {"b": "new", "c": "old"}
    write("summary-broken.json", "{", 300)
    assert failures(tmp_path) == {"b": "new", "c": "old"}


def test_a_slide_that_failed_now_shows_what_an_earlier_run_left(tmp_path):
    rows = page_data([facts("a"), facts("b")], {"b": "/x/y.svs: made differently"})["rows"]
    assert [r[0] for r in rows] == ["b", "a"] and rows[0][-1] == [[0, "y.svs: made differently"]] and rows[0][1] == 500


def test_each_rule_speaks_for_the_slide_that_it_means_and_for_no_other():
    rng = np.random.default_rng(0)
    plain = [facts(f"s{i:02}", median_sharpness=float(rng.normal(500, 60))) for i in range(30)]
    odd = {
        "no patch": facts("a", patches=0, median_sharpness=None),
        "no tissue": facts("b", tissue_share=0.0),
        "all tissue": facts("c", tissue_share=0.99),
        "tissue left out": facts("cc", tissue_covered=0.79),
        "blurred": facts("d", median_sharpness=60.0),
        "pen": facts("e", inked_share=0.06),
        "odd scale": facts("f", mpp_l0=0.31),
        "few patches": facts("g", patches=49),
    }
    data = page_data([*plain, *odd.values()], {"h": "broken"})
    names = list(RULES)
    found = [(row[0], [names[rule] for rule, _ in row[-1]]) for row in data["rows"]]
    assert found[:9] == [("h", ["failed"]), *((f.slide_id, [name]) for name, f in odd.items())]
    assert found[9:] == [(f.slide_id, []) for f in plain]
    assert [rule["name"] for rule in data["rules"]] == names and all(
        len(rule["meaning"]) > 10 for rule in data["rules"]
    )


def rules_of(slides):
    return [[w.rule for w in warned] for warned in judge(slides)]


def test_few_slides_are_not_compared_with_each_other():
    few = [facts(f"s{i}") for i in range(7)]
    assert rules_of([*few, facts("x", median_sharpness=1.0, patches=1, mpp_l0=1.0)]) == [[]] * 8
    assert rules_of([]) == []


def test_a_scale_that_no_scanner_has_or_that_is_unknown_is_odd_in_any_company():
    assert rules_of([facts("u", mpp_l0=None)]) == [["odd scale"]] == rules_of([facts("u", mpp_l0=3.0)])


def test_two_kinds_of_scanner_are_one_cohort():
    mixed = [facts(f"s{i}", mpp_l0=0.2525 if i % 4 else 0.5035) for i in range(40)]
    assert rules_of(mixed) == [[]] * 40


def test_a_slide_that_was_to_be_all_tissue_is_not_suspicious():
    assert rules_of([facts("all", tissue_method="all", tissue_share=1.0)]) == [[]]


def test_slightly_softer_slides_are_not_called_blurred():
    assert rules_of([*(facts(f"s{i}") for i in range(20)), facts("x", median_sharpness=300.0)]) == [[]] * 21


def test_parts_that_end_together_wait_for_the_page(tmp_path):
    (tmp_path / "qc").mkdir()
    (tmp_path / "qc/a.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(facts("a"))}))
    with lock(tmp_path / "qc.html"):
        waiting = threading.Thread(target=write_qc_page, args=(tmp_path,))
        waiting.start()
        time.sleep(0.3)
        assert not (tmp_path / "qc.html").exists()
        (tmp_path / "qc/b.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(facts("b"))}))
    waiting.join()
    assert [r["slide_id"] for r in rows_of((tmp_path / "qc.html").read_text())] == ["a", "b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["qc", "qc.html"]


def test_five_thousand_slides_fit_one_page(tmp_path):
    (tmp_path / "qc").mkdir()
    for i in range(5000):
        written = {"format": FORMAT, "version": VERSION, **asdict(facts(f"s{i}", tissue_share=i / 7777))}
        (tmp_path / f"qc/s{i}.json").write_text(json.dumps(written))
    (tmp_path / "qc/damaged.json").write_text("{")
    write_qc_page(tmp_path)
    assert len(rows_of((tmp_path / "qc.html").read_text())) == 5000
    assert (tmp_path / "qc.html").stat().st_size < 1.5e6


@pytest.mark.parametrize("change", ["nothing", "facts", "away", "more", "failure", "mended", "page", "rules"])
def test_the_page_is_drawn_again_where_anything_of_it_has_changed_and_nowhere_else(
    tiled, tmp_path, monkeypatch, change
):
    """Also where size and time of a file tell nothing."""
    out = shutil.copytree(tiled, tmp_path / "out")
    written, page = out / "qc/phantom.json", out / "qc.html"
    os.utime(page, (1e9, 1e9))
    before, found = page.read_bytes(), json.loads(written.read_text())
    stat = written.stat()
    if change == "facts":
        written.write_text(written.read_text().replace(f'"width_l0": {found["width_l0"]}', '"width_l0": 1024'))
        os.utime(written, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert written.stat().st_size == stat.st_size
    elif change == "away":
        written.unlink()
    elif change == "more":
        (out / "qc/x.json").write_text(json.dumps(found | {"slide_id": "x"}))
    elif change == "failure":
        (out / "failures-1-of-2.csv").write_text("slide_id,reason\nx,damaged\n")
    elif change == "mended":
        (out / "summary-1-of-2.json").write_text(json.dumps({"slides": {"bad": {"status": "done"}}}))
    elif change == "page":
        page.write_text("<html>of an earlier version</html>")
    elif change == "rules":
        other = shutil.copytree(Path(picture.__file__).parent, tmp_path / "qc-room")
        (other / "rules.py").write_text("# others")
        monkeypatch.setattr("tiling.qc.page.resources.files", lambda room: other)
    write_qc_page(out)
    assert (page.stat().st_mtime == 1e9) == (change == "nothing")
    assert (page.read_bytes() == before) == (change in ("nothing", "page"))


def test_facts_are_read_as_they_were_written(tiled):
    _, found = draw_qc(PatchStore(tiled / "phantom.zarr"))
    assert read_facts(tiled / "qc/phantom.json") == found


@pytest.mark.parametrize(
    ("length", "label"),
    [(999, "500 µm"), (1000, "1 mm"), (2000, "2 mm"), (4999, "2 mm"), (0.7, "0.5 µm"), (12345, "10 mm")],
)
def test_scale_bars_have_round_lengths(length, label):
    assert round_length(length, "µm")[1] == label and round_length(length, "µm")[0] <= length
