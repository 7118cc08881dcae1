"""Patch AUROC, FROC and Dice of a map against one-by-one loops, shapely and scikit-learn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
from drawn_slides import GRID, attention
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from sklearn.metrics import f1_score, roc_auc_score

from mil.maps.lesions import (
    ENDING,
    FALSE_POSITIVES,
    best_dice,
    covered_share,
    froc,
    lesion_agreement,
    write_cohort,
    write_slide,
)
from mil.maps.measured import read_measured
from mil.maps.scores import PatchScores
from mil.run.attention import attention_path, write_attention
from tiling.manifest import SlideRow

LESIONS = [shapely.Point(900, 900).buffer(500), shapely.box(2600, 1300, 3050, 1500)]
LESIONS.append(shapely.box(3590, 2100, 3650, 2140))  # lies where no patch is


@pytest.fixture
def annotation(tmp_path):
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(g)} for g in LESIONS]
    path = tmp_path / "lesions.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30))
def test_dice_is_the_best_f1_of_any_threshold(patches):
    truth, values = np.array([t for t, _ in patches]), np.array([float(v) for _, v in patches])
    if not truth.any():
        return
    dice, threshold = best_dice(truth, values)
    assert dice == pytest.approx(max(f1_score(truth, values >= t) for t in values))
    assert f1_score(truth, values >= threshold) == pytest.approx(dice)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5))
def test_froc_counts_patches_at_or_above_each_threshold(found_at, others, slides):
    false_positives, sensitivity = froc(np.array(found_at, float), np.array(others, float), slides)
    thresholds = sorted(found_at, reverse=True)
    assert false_positives.tolist() == [sum(o >= t for o in others) / slides for t in thresholds]
    assert sensitivity.tolist() == pytest.approx([sum(f >= t for f in found_at) / len(found_at) for t in thresholds])


def test_a_slide_and_its_cohort(tmp_path, annotation):
    values = np.random.default_rng(3).permutation(len(GRID)).astype(float)
    scores = PatchScores(values, "logit", "log-odds")
    origin = {"scores": "abc", "annotation": "def"}
    write_slide(tmp_path, replace(attention(GRID, np.ones(len(GRID))), slide_id="s1"), scores, annotation, origin)
    healthy = replace(attention(GRID, np.ones(len(GRID))), slide_id="s2", label="normal")
    write_slide(tmp_path, healthy, PatchScores(values - 5, "logit", "log-odds"), None, {**origin, "annotation": None})
    slide = read_measured(tmp_path / f"s1{ENDING}")
    squares = [shapely.box(x, y, x + 512, y + 512) for x, y in GRID]
    shares = np.array([[lesion.intersection(s).area / s.area for s in squares] for lesion in LESIONS])
    truth = (shares >= 0.25).any(0)
    assert slide["lesion"] == truth.astype(int).tolist()
    assert slide["auroc"] == pytest.approx(roc_auc_score(truth, values))
    assert (slide["scores"], slide["annotation"]) == ("abc", "def")
    at = [values[shares[0] >= 0.25].max(), values[shares[1] >= min(0.25, shares[1].max())].max()]
    assert slide["lesions_found_at"][:2] == at
    assert len(slide["lesions_found_at"]) == 2
    write_cohort(tmp_path, {"s1": "p1", "s2": "p2", "s3": "p3"})
    cohort = json.loads((tmp_path / "lesions.json").read_text())
    others = np.r_[values[~truth], values - 5]
    for most in FALSE_POSITIVES:
        found = [sum(a >= t for a in at) / 2 for t in sorted(at) if (others >= t).sum() / 2 <= most]
        assert cohort["froc"][str(most)] == max(found, default=0)
    assert (cohort["slides"], cohort["lesions"]) == (2, 2)
    assert cohort["patch_auroc"] == {"value": pytest.approx(slide["auroc"]), "low": None, "high": None}
    assert (tmp_path / "lesions.png").stat().st_size > 5000


def test_agreement_is_the_auroc_within_slides_averaged(tmp_path):
    rng = np.random.default_rng(0)
    rows, expected, expected_shown = [], [], []
    square = [[1024, 1024], [2048, 1024], [2048, 2048], [1024, 2048], [1024, 1024]]
    geojson = {"features": [{"geometry": {"type": "MultiPolygon", "coordinates": [[square]]}}]}
    (tmp_path / "lesion.geojson").write_text(json.dumps(geojson))
    truth = np.array([1024 <= x < 2048 and 1024 <= y < 2048 for x, y in GRID])
    for i in range(6):
        values, added = rng.random((2, len(GRID))).astype(np.float32) + np.float32(0.5) * truth
        slide = replace(attention(GRID, values), slide_id=f"s{i}", contributions=np.stack([-added, added], 1))
        write_attention(attention_path(tmp_path, f"s{i}"), slide)
        expected.append(roc_auc_score(truth, values))
        expected_shown.append(roc_auc_score(truth, added))
        rows.append(SlideRow(f"s{i}", patient_id=f"p{i // 2}", annotation=tmp_path / "lesion.geojson"))
    rows.append(SlideRow("unannotated", patient_id="p9"))
    found = lesion_agreement(tmp_path, rows)
    assert found.attention["value"] == pytest.approx(np.mean(expected))
    assert found.attention["low"] < found.attention["value"] < found.attention["high"]
    assert found.shown["value"] == pytest.approx(np.mean(expected_shown))
    assert (found.slides, found.lesion_patches, found.patches) == (6, 6 * truth.sum(), 6 * len(GRID))


def test_the_covered_share_is_that_of_points_in_the_patch():
    """Against even-odd tests of 128 × 128 points a patch, which know nothing of areas."""
    outer = np.array([(900, 700), (2100, 900), (2300, 1900), (1200, 2000), (800, 1300)], float)
    hole = np.array([(1300, 1100), (1300, 1700), (1900, 1500)], float)
    corner = np.array([(-50, -40), (200, 0), (0, 300)], float)  # drawn over the slide's edge
    bow = np.array([(2400, 100), (3300, 900), (3300, 100), (2400, 900)], float)  # crosses itself
    over = np.array([(2000, 1500), (3000, 1500), (3000, 2200), (2000, 2200)], float)  # lies partly on the first
    slide = attention(np.array(GRID) - (200, 130), np.ones(len(GRID)))  # the first ones stick out over the slide
    steps = (np.arange(128) + 0.5) / 128 * 512
    points = (slide.coords[:, None] + np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)).reshape(-1, 2)
    inside = np.zeros(len(points), bool)
    for rings in ([outer, hole], [bow], [over], [corner]):
        inside |= np.logical_xor.reduce([Outline(ring).contains_points(points) for ring in rings])
    expected = inside.reshape(len(GRID), -1).mean(1)
    found = covered_share(slide, [[outer, hole], [bow], [over], [corner]])
    assert np.abs(found - expected).max() < 0.004 and expected.max() > 0 and (found[expected == 1] == 1).all()


def test_the_covered_share_is_exact():
    slide = attention([(0, 0), (512, 0), (1024, 0)], [1, 1, 1])
    quarter = np.array([(0, 0), (256, 0), (256, 256), (0, 256)], float)
    triangle = np.array([(512, 0), (1024, 0), (512, 512)], float)
    assert covered_share(slide, [[quarter], [triangle]]).tolist() == [0.25, 0.5, 0.0]
    assert covered_share(slide, []).tolist() == [0, 0, 0]
