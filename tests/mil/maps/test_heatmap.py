"""Heatmaps against known geometry, read back from the files; GeoJSON by an independent parser."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import ome_types
import openslide
import pandas as pd
import pytest
import shapely
import tifffile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from sklearn.metrics import roc_auc_score

from mil.demo.config import DemoConfig
from mil.heads.head import MilOutput
from mil.maps.config import ENDINGS, HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.maps.faithfulness import FRACTIONS, measure, read_faithfulness, write_cohort
from mil.maps.faithfulness import write_slide as write_faithfulness
from mil.maps.forms.geojson import contours, squares, write_geojson
from mil.maps.forms.ometiff import read_provenance as read_ome_provenance
from mil.maps.forms.ometiff import write_ometiff
from mil.maps.forms.png import write_png
from mil.maps.gradients import input_gradients
from mil.maps.grid import colour_scale, render, score_grid
from mil.maps.lesion_truth import covered_share, lesion_agreement
from mil.maps.scores import PatchScores, patch_scores
from mil.run.attention import SlideAttention, attention_path, write_attention
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import SlideError
from tiling.jobs.execution import IN_THIS_PROCESS
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow
from tiling.slides.files import slide_fingerprint

CONFIGS = Path(__file__).parents[3] / "configs"


class White:
    """A slide of nothing but white, of any size."""

    backend, mpp_source, path = "memory", "memory", Path("white")

    def __init__(self, width, height):
        self.level_sizes, self.downsamples, self.mpp = ((width, height),), (1.0,), (0.25, 0.25)

    def read(self, level, x, y, width, height, reduction=1):
        return np.full((height, width, 3), 255, np.uint8)


def attention(coords, values, size=512, width=4000, height=3000, mpp=0.25):
    values = np.asarray(values, np.float32)
    return SlideAttention(
        attention=values / values.sum(), patch_logits=np.stack([-values, values], 1),
        coords=np.asarray(coords, np.int64),
        slide_id="s1", label="tumour", classes=("normal", "tumour"), positive="tumour",
        probabilities=np.array([0.25, 0.75]), patch_size_l0=size, overlap_px=0, patch_size_px=256,
        width_l0=width, height_l0=height, mpp_l0=mpp,
    )  # fmt: skip


def grid_of(slide, shape, downsample):
    return score_grid(slide.coords, patch_scores(slide, "attention").values, slide.patch_size_l0, shape, downsample)


GRID = [(x, y) for y in range(0, 2500, 512) for x in range(0, 3500, 512)]


def test_one_marked_patch_covers_exactly_its_level_zero_square():
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 9
    for downsample in (1.0, 3.0, 4.0, 7.3):
        shape = (math.ceil(3000 / downsample), math.ceil(4000 / downsample))
        scores = grid_of(attention(GRID, values), shape, downsample)
        rows, columns = np.nonzero(scores > (np.nanmax(scores) + np.nanmin(scores)) / 2)
        edges = [(columns.min(), 1536), (columns.max() + 1, 2048), (rows.min(), 1024), (rows.max() + 1, 1536)]
        for found, l0 in edges:
            assert abs(found * downsample - l0) <= 0.5 * downsample + 1e-9
        assert np.isnan(scores[:, round(3584 / downsample) + 1 :]).all()


def test_the_map_is_attention_times_n_and_overlaps_are_averaged():
    slide = attention([(0, 0), (256, 0)], [1, 3])
    scores = grid_of(slide, (3000, 4000), 1.0)
    assert scores[0, 0] == pytest.approx(0.5) and scores[0, 700] == pytest.approx(1.5)
    assert scores[511, 300] == pytest.approx(1.0) and np.isnan(scores[512, 0])


def test_the_picture_is_warm_where_attention_is_high(tmp_path):
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 8
    values[-1] = 0.125
    slide = attention(GRID, values)
    write_png(tmp_path / "s.png", slide, patch_scores(slide, "attention"), White(4000, 3000), None, 1.0, {"a": 1})
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


@pytest.mark.parametrize("values", [np.ones(len(GRID)), np.r_[1.0, np.zeros(len(GRID) - 1)]])
@pytest.mark.parametrize("mpp", [0.25, math.nan])
def test_flat_and_one_hot_attention_and_unknown_scale_are_drawn(tmp_path, values, mpp):
    slide = attention(GRID, values, mpp=mpp)
    write_png(tmp_path / "s.png", slide, patch_scores(slide, "attention"), White(4000, 3000), None, 0.5, {})
    assert Image.open(tmp_path / "s.png").size[0] > 1000


def test_geojson_is_valid_and_in_level_zero_pixels(tmp_path):
    values = np.arange(1, len(GRID) + 1)
    slide = attention(GRID, values)
    write_geojson(tmp_path / "s.geojson", squares(slide, patch_scores(slide, "attention")), {"a": 1})
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


def test_lesion_share_equals_shapelys(tmp_path):
    hole = [(1300, 1100), (1300, 1700), (1900, 1500)]
    lesion = shapely.Polygon([(900, 700), (2100, 900), (2300, 1900), (1200, 2000), (800, 1300)], [hole])
    slide = attention(GRID, np.ones(len(GRID)))
    share = covered_share(slide, [[np.array(lesion.exterior.coords[:-1]), np.array(hole)]])
    exact = [lesion.intersection(shapely.box(x, y, x + 512, y + 512)).area / 512**2 for x, y in GRID]
    assert np.abs(share - exact).max() < 0.03


def test_agreement_is_the_auroc_within_slides_averaged(tmp_path):
    rng = np.random.default_rng(0)
    rows, expected = [], []
    square = [[1024, 1024], [2048, 1024], [2048, 2048], [1024, 2048], [1024, 1024]]
    geojson = {"features": [{"geometry": {"type": "MultiPolygon", "coordinates": [[square]]}}]}
    (tmp_path / "lesion.geojson").write_text(json.dumps(geojson))
    truth = np.array([1024 <= x < 2048 and 1024 <= y < 2048 for x, y in GRID])
    for i in range(6):
        values = rng.random(len(GRID)) + 0.5 * truth
        write_attention(attention_path(tmp_path, f"s{i}"), replace(attention(GRID, values), slide_id=f"s{i}"))
        expected.append(roc_auc_score(truth, values))
        rows.append(SlideRow(f"s{i}", patient_id=f"p{i // 2}", annotation=tmp_path / "lesion.geojson"))
    rows.append(SlideRow("unannotated", patient_id="p9"))
    found = lesion_agreement(tmp_path, rows)
    assert found.attention["value"] == pytest.approx(np.mean(expected))
    assert found.attention["low"] < found.attention["value"] < found.attention["high"]
    assert (found.slides, found.lesion_patches, found.patches) == (6, 6 * truth.sum(), 6 * len(GRID))


@pytest.fixture
def marked():
    """Overlapping patches on a slide that is not square, one of them marked, and the marked corner."""
    coords = [(x, y) for y in range(100, 6000, 384) for x in range(60, 9000, 384)]
    at = coords.index((60 + 384 * 9, 100 + 384 * 4))
    values = np.full(len(coords), 1.0)
    values[at] = 50
    return attention(coords, values, width=9999, height=6789, mpp=0.2527), np.array(coords[at])


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
    write_ometiff(path, slide, patch_scores(slide, "attention"), {"µ": [1]}, bounds)
    assert read_ome_provenance(path) == {"µ": [1]}
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


def test_the_ome_xml_is_valid(tmp_path, marked):
    slide, _ = marked
    write_ometiff(tmp_path / "s.ome.tiff", slide, patch_scores(slide, "logit"), {})
    write_ometiff(tmp_path / "again.ome.tiff", slide, patch_scores(slide, "logit"), {})
    assert (tmp_path / "again.ome.tiff").read_bytes() == (tmp_path / "s.ome.tiff").read_bytes()
    pixels = ome_types.from_tiff(tmp_path / "s.ome.tiff", validate=True).images[0].pixels
    assert (pixels.size_x, pixels.size_y, pixels.physical_size_x) == (157, 107, pytest.approx(0.2527 * 64))


def test_squares_and_contours_count_from_the_bounds(marked):
    slide, corner = marked
    scores = patch_scores(slide, "attention")
    hottest = max(
        squares(slide, scores, (1234, 1000))["features"], key=lambda f: f["properties"]["measurements"]["attention"]
    )
    assert hottest["properties"]["classification"]["name"] == "attention 10 of 10"
    x, y = corner - (1234, 1000)
    assert shapely.geometry.shape(hottest["geometry"]).bounds == (x, y, x + 512, y + 512)
    by_rank = patch_scores(replace(slide, attention=np.arange(len(slide.coords), dtype=np.float32) + 1), "attention")
    outlines = contours(slide, by_rank, (1234, 1000))["features"]
    order = np.argsort(-by_rank.values)
    for share, feature in zip((0.5, 0.25, 0.1, 0.05, 0.01), outlines, strict=True):
        top = slide.coords[order[: feature["properties"]["measurements"]["patches"]]] - (1234, 1000)
        assert abs(len(top) - share * len(order)) <= 1
        exact = shapely.unary_union([shapely.box(*c, *(c + 512)) for c in top])
        assert shapely.geometry.shape(feature["geometry"]).equals(exact)


def test_more_is_warmer_and_the_colours_are_the_scores():
    values = np.linspace(-3, 5, 50)
    slide = attention([(i * 64, 0) for i in range(50)], np.ones(50), size=64)
    scores = PatchScores(values, "logit", "log-odds")
    scale = colour_scale(scores)
    rgba = render(score_grid(slide.coords, values, 64, (1, 52), 64.0), scale)[0]
    assert (rgba[50:, 3] == 0).all() and (np.diff(rgba[:50, :3].astype(float) @ (0.2126, 0.7152, 0.0722)) > 0).all()
    table = np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255)
    back = [np.abs(table - colour).sum(1).argmin() / 255 * 8 - 3 for colour in rgba[:50, :3].astype(int)]
    assert np.abs(back - values).max() <= 2 * 8 / 255  # the darkest steps of the table are hardly told apart


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_grid_is_the_mean_by_area(data):
    size, downsample = data.draw(st.integers(3, 40)), data.draw(st.floats(1, 9))
    origin = data.draw(st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
    coords = np.array(data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=8)))
    values = np.random.default_rng(0).normal(size=len(coords))
    shape = (11, 17)

    def cover(start, n):
        return np.clip(np.minimum(np.arange(n) + 1, start + size / downsample) - np.maximum(np.arange(n), start), 0, 1)

    starts = (coords - origin) / downsample
    areas = np.array([np.outer(cover(y, shape[0]), cover(x, shape[1])) for x, y in starts])
    total = areas.sum(0)
    expected = (areas * values[:, None, None]).sum(0) / np.where(total > 0, total, 1)
    found = score_grid(coords, values, size, shape, downsample, origin)
    sure = np.abs(total - 0.5) > 1e-5
    assert (np.isnan(found) == (total < 0.5))[sure].all()
    shown = ~np.isnan(found)
    assert np.allclose(found[shown], expected[shown], atol=1e-9)


def test_scores_by_their_definitions():
    rng = np.random.default_rng(0)
    logits, contributed = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    slide = replace(
        attention([(i * 512, 0) for i in range(30)], rng.random(30)),
        **dict(classes=("a", "b", "c"), positive="", probabilities=np.array([0.2, 0.5, 0.3])),
        **dict(patch_logits=logits, contributions=contributed),
    )
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(patch_scores(slide, "logit").values, np.log(p[:, 1] / (1 - p[:, 1])))
    assert np.allclose(patch_scores(slide, "logit", "c").values, np.log(p[:, 2] / (1 - p[:, 2])))
    summed = contributed.sum(0)
    found = patch_scores(slide, "contribution", "a").values.sum()
    assert found == pytest.approx(summed[0] - (summed[1] + summed[2]) / 2)
    order = np.argsort(slide.attention)
    assert (patch_scores(slide, "attention", "", "rank").values[order] == np.arange(1, 31)).all()
    assert patch_scores(slide, "attention", "", "percentile").values[order[-1]] == pytest.approx(100 * 29.5 / 30)
    for kind, of_class in (("attention", "a"), ("gradient", "")):
        with pytest.raises(SlideError, match="has no"):
            patch_scores(slide, kind, of_class)


class Rule:
    """A head whose logits are known: the mean of x · w over the bag."""

    def __init__(self, weights):
        self.weights = torch.tensor(weights)  # (D, C)

    def standardise(self, bags):
        return (bags.features.float() - 1) / 2

    def __call__(self, bags):
        return MilOutput(self.standardise(bags).mean(0, keepdim=True) @ self.weights, None, None)


def test_input_gradients_of_a_linear_rule_are_its_parts():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(7, 5)).astype(np.float32))
    rules = [Rule(rng.normal(size=(5, 2)).astype(np.float32)) for _ in range(3)]
    found = input_gradients(rules, features, torch.device("cpu"))
    exact = np.mean([((features - 1) / 2 @ rule.weights).numpy() / 7 for rule in rules], axis=0)
    assert np.allclose(found, exact, atol=1e-6)


def test_faithfulness_knows_a_true_map_from_a_false_one(tmp_path):
    weights = np.zeros(100)
    weights[:5] = 1.0  # the slide is positive where any of five patches is there

    def probability(patches):
        return float(weights[patches].max())

    true = measure(weights, probability, seed=0)
    false = measure(-weights, probability, seed=0)
    chance = np.mean(
        [measure(np.random.default_rng(i).random(100), probability, seed=i).areas.mean() for i in range(20)]
    )
    assert true.areas.mean() > 0.4 and (true.areas > 0).all() and false.areas.mean() < -0.1 and abs(chance) < 0.1
    assert true.deletion[0] == 1 and true.deletion[FRACTIONS.index(0.05)] == 0 and (true.insertion == 1).all()
    for slide_id, found in (("a", true), ("b", false)):
        write_faithfulness(tmp_path, slide_id, "logit", "digest", found)
    write_cohort(tmp_path, {"a": "p1", "b": "p2", "missing": "p3"}, "logit")
    cohort = read_faithfulness(tmp_path / "faithfulness.json")
    assert cohort["slides"] == 2
    assert cohort["area"]["value"] == pytest.approx((true.areas.mean() + false.areas.mean()) / 2)


def test_every_form_from_a_run_and_another_file_is_refused(tmp_path, make_cohort, write_features, monkeypatch):
    here = lambda rows, work, out, _, listener: run_slides(rows, work, out, IN_THIS_PROCESS, listener)  # noqa: E731
    monkeypatch.setattr("mil.maps.export.run_slides", here)
    table = make_cohort(tmp_path / "f", slides=16)
    run, out = tmp_path / "run", tmp_path / "out"
    config = TrainConfig(folds=2, epochs=3, device="cpu")
    slide = tmp_path / "s00.tif"
    tifffile.imwrite(slide, np.full((1024, 8192, 3), 200, np.uint8), photometric="rgb", tile=(256, 256))
    rng = np.random.default_rng(0)
    shape = {"width_l0": 8192, "height_l0": 1024, "slide_fingerprint": slide_fingerprint(slide)}
    write_features(tmp_path / "f", "s00", rng.normal(size=(20, 8)), **shape)
    train_mil(tmp_path / "f", table, "diagnosis", run, config)
    rows = [SlideRow("s00", path=slide, patient_id="p00")]
    settings = dict(formats=",".join(ENDINGS), score="gradient", faithfulness=True, device="cpu")
    assert export_heatmaps(run, tmp_path / "f", rows, HeatmapConfig(**settings), out).counts == {"done": 1}
    assert {f"s00{ending}" for ending in ENDINGS.values()} <= {path.name for path in out.iterdir()}
    read = pd.read_csv(out / "s00.csv")
    assert (
        len(read) == 20
        and (read.x_um == read.x_l0 * 0.25).all()
        and set(read.score_is) == {"input × gradient of the log-odds of tumour"}
    )
    assert "s00.html" in (out / "index.html").read_text() and "Faithfulness" in (out / "index.html").read_text()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("s00.*")}
    assert export_heatmaps(run, tmp_path / "f", rows, HeatmapConfig(**settings), out).counts == {"skipped": 1}
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("s00.*")}
    [other_score] = export_heatmaps(run, tmp_path / "f", rows, HeatmapConfig(formats="csv"), out)
    assert other_score.status == "failed" and "made differently" in other_score.reason
    splits = pd.read_csv(run / "splits.csv")
    tested = splits[(splits.slide_id == "s00") & (splits.split == "test")].fold.item()
    one = HeatmapConfig(formats="csv", fold=tested, device="cpu")
    assert export_heatmaps(run, tmp_path / "f", rows, one, tmp_path / "one").counts == {"done": 1}
    seen = HeatmapConfig(formats="csv", fold=1 - tested, device="cpu")
    assert export_heatmaps(run, tmp_path / "f", rows, seen, tmp_path / "seen").counts == {"failed": 1}
    assert "was trained on this slide" in (tmp_path / "seen" / "failures.csv").read_text()
    tifffile.imwrite(slide, np.full((1024, 8192, 3), 201, np.uint8), photometric="rgb", tile=(256, 256))
    assert export_heatmaps(run, tmp_path / "f", rows, HeatmapConfig(), tmp_path / "other").counts == {"failed": 1}
    assert "is another file than the one" in (tmp_path / "other" / "failures.csv").read_text()


def test_no_patch_feature_is_lost():
    slide = attention(GRID, np.ones(len(GRID)))
    assert len(squares(slide, patch_scores(slide, "attention"))["features"]) == len(GRID)


@pytest.mark.parametrize(("name", "config"), [("heatmap", HeatmapConfig), ("demo", DemoConfig)])
def test_the_commented_defaults_are_the_defaults(name, config):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert written == {k: v for k, v in vars(config()).items() if k != "overwrite"}


def test_wrong_requests(command, tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "golden" / "run-v1", tmp_path / "run")
    (tmp_path / "s.csv").write_text("slide_id,path\na,s.csv\n")
    base = ["export-heatmaps", tmp_path / "run", tmp_path, "--slides", tmp_path / "s.csv", "--out", tmp_path / "out"]
    for more, said in [(["--formats", "svg"], "--formats svg"), (["--slide-id", "b"], "--slide-id b: not in")]:
        done = command(*base, *more)
        assert done.returncode == 2 and said in done.stderr
    done = command("export-heatmaps", tmp_path / "nowhere", *base[2:])
    assert done.returncode == 2 and "no run directory" in done.stderr
    slide = tmp_path / "a.tif"
    tifffile.imwrite(slide, np.zeros((300, 400, 3), np.uint8), photometric="rgb")
    (tmp_path / "other.csv").write_text(f"slide_id,path\ns00,{slide}\n")  # the run tested s00, of another size
    done = command(*base[:4], tmp_path / "other.csv", *base[5:], "--formats", "geojson")
    assert done.returncode == 1 and "is this the same slide?" in done.stderr
    assert not (tmp_path / "out/s00.geojson").exists()
    done = command(*base)  # a slide that nothing is known of fails, with the reason
    assert done.returncode == 1 and "no such feature file" in (tmp_path / "out/failures.csv").read_text()
