"""Heatmaps against known geometry, read back from the files; GeoJSON by an independent parser."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
import yaml
from matplotlib import colormaps
from PIL import Image
from sklearn.metrics import roc_auc_score

from mil.demo_config import DemoConfig
from mil.heatmap_config import HeatmapConfig
from mil.heatmap_geojson import feature_collection, write_geojson
from mil.heatmap_png import score_map, write_png
from mil.lesion_truth import covered_share, lesion_agreement
from mil.run import SlideAttention, attention_path, write_attention
from tiling.manifest import SlideRow

CONFIGS = Path(__file__).parent.parent.parent / "configs"


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


GRID = [(x, y) for y in range(0, 2500, 512) for x in range(0, 3500, 512)]


def test_one_marked_patch_covers_exactly_its_level_zero_square():
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 9
    for downsample in (1.0, 3.0, 4.0, 7.3):
        shape = (math.ceil(3000 / downsample), math.ceil(4000 / downsample))
        scores = score_map(attention(GRID, values), shape, downsample)
        rows, columns = np.nonzero(scores > 5)
        edges = [(columns.min(), 1536), (columns.max() + 1, 2048), (rows.min(), 1024), (rows.max() + 1, 1536)]
        for found, l0 in edges:
            assert abs(found * downsample - l0) <= 0.5 * downsample + 1e-9
        assert np.isnan(scores[:, round(3584 / downsample) + 1 :]).all()


def test_the_map_is_attention_times_n_and_overlaps_are_averaged():
    slide = attention([(0, 0), (256, 0)], [1, 3])
    scores = score_map(slide, (3000, 4000), 1.0)
    assert scores[0, 0] == pytest.approx(0.5) and scores[0, 700] == pytest.approx(1.5)
    assert scores[511, 300] == pytest.approx(1.0) and np.isnan(scores[512, 0])


def test_the_picture_is_warm_where_attention_is_high(tmp_path):
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 8
    values[-1] = 0.125
    write_png(tmp_path / "s.png", attention(GRID, values), White(4000, 3000), None, 1.0, {"a": 1})
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
    write_png(tmp_path / "s.png", attention(GRID, values, mpp=mpp), White(4000, 3000), None, 0.5, {})
    assert Image.open(tmp_path / "s.png").size[0] > 1000


def test_geojson_is_valid_and_in_level_zero_pixels(tmp_path):
    values = np.arange(1, len(GRID) + 1)
    slide = attention(GRID, values)
    write_geojson(tmp_path / "s.geojson", slide, {"a": 1})
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


def test_no_patch_feature_is_lost():
    assert len(feature_collection(attention(GRID, np.ones(len(GRID))))["features"]) == len(GRID)


@pytest.mark.parametrize(("name", "config"), [("heatmap", HeatmapConfig), ("demo", DemoConfig)])
def test_the_commented_defaults_are_the_defaults(name, config):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert written == {k: v for k, v in vars(config()).items() if k != "overwrite"}


def test_wrong_requests(command, tmp_path):
    shutil.copytree(Path(__file__).parent.parent / "golden" / "run-v1", tmp_path / "run")
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
