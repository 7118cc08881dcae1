"""Patch AUROC, FROC and Dice of a map against one-by-one loops, shapely and scikit-learn."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from mil.maps.lesions import ENDING, FALSE_POSITIVES, best_dice, froc, read_measures, write_cohort, write_slide
from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention

GRID = [(x, y) for y in range(0, 2500, 512) for x in range(0, 3500, 512)]
LESIONS = [shapely.Point(900, 900).buffer(500), shapely.box(2600, 1300, 3050, 1500)]
LESIONS.append(shapely.box(3590, 2100, 3650, 2140))  # lies where no patch is


def slide_of(slide_id, label):
    """A slide without scores of its own."""
    return SlideAttention(
        attention=np.full(len(GRID), 1 / len(GRID), np.float32), patch_logits=np.zeros((len(GRID), 2), np.float32),
        coords=np.array(GRID), slide_id=slide_id, label=label, classes=("normal", "tumour"), positive="tumour",
        probabilities=np.array([0.25, 0.75]), patch_size_l0=512, overlap_px=0, patch_size_px=256,
        width_l0=4000, height_l0=3000, mpp_l0=0.25,
    )  # fmt: skip


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
    write_slide(tmp_path, slide_of("s1", "tumour"), scores, annotation, origin)
    healthy = slide_of("s2", "normal")
    write_slide(tmp_path, healthy, PatchScores(values - 5, "logit", "log-odds"), None, {**origin, "annotation": None})
    slide = read_measures(tmp_path / f"s1{ENDING}")
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
