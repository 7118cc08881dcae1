"""The linear head: the ridge solution on slide vectors, in whatever way files hold them; other heads say what fits."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from features.interop.reader import open_features
from mil import predict, train
from mil.heads.bags import pack
from mil.heads.head import HeadShape, TrainingSlides
from mil.heads.registry import build_head
from mil.heads.zoo import linear
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.tasks.classification import Classification
from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow

FAST = dict(folds=2, val_fraction=0.5, epochs=8, embed_dim=8, attention_dim=4, bootstrap=100, device="cpu")
TASK = Classification(("a", "b"), 1)


def _slides(count=30, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    vectors = rng.normal(size=(count, dim)) + 1.5 * labels[:, None] * (np.arange(dim) == 1)
    features = tuple(torch.tensor(vector[None], dtype=torch.float16) for vector in vectors)
    ids = np.array([f"s{i}" for i in range(count)])
    return TrainingSlides(features, labels, ids, ids, TASK)


def test_it_is_logistic_regression_with_a_ridge_penalty(monkeypatch):
    monkeypatch.setattr(linear, "PENALTIES", (0.3,))
    slides = _slides()
    head = build_head("linear", HeadShape(5, 2, 8, 4, 0.0)).eval()
    fitted = head.fit(slides, 1, np.random.default_rng(0))
    x = np.concatenate([f.numpy() for f in slides.features]).astype(np.float64)
    x /= x.std(axis=0)
    # the two logits share the margin, w and -w: |w|² twice, so scikit-learn's C is 2 / (0.3 n)
    oracle = LogisticRegression(C=2 / (0.3 * len(x)), tol=1e-10, max_iter=10_000).fit(x, slides.labels)
    output = head(pack(list(slides.features)))
    margin = (output.logits[:, 1] - output.logits[:, 0]).detach().numpy()
    np.testing.assert_allclose(margin, oracle.decision_function(x), atol=2e-3)
    assert fitted.held_out.shape == (30, 2) and output.attention.eq(1).all()
    torch.testing.assert_close(output.contributions, output.patch_logits)


def test_what_it_says_of_a_slide_was_learnt_without_its_patient():
    slides = _slides(40, dim=30, seed=1)
    noise = TrainingSlides(slides.features, np.random.default_rng(2).permutation(slides.labels), *_ids(slides), TASK)
    held_out = build_head("linear", HeadShape(30, 2, 8, 4, 0.0)).eval().fit(noise, 1, np.random.default_rng(0)).held_out
    ranks = rankdata((held_out[:, 1] - held_out[:, 0]).numpy())
    auroc = (ranks[noise.labels == 1].mean() - 10.5) / 20
    assert 0.2 < auroc < 0.8


def _ids(slides):
    return slides.patient_ids, slides.slide_ids


def _write(path, vector, way):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if way == "trident (D,)":
            file["features"] = vector
            file["features"].attrs["encoder"] = "titan"
            file["coords"] = np.arange(14).reshape(7, 2)
            file["coords"].attrs["patch_size_level0"] = 512
        elif way == "stamp (1, D)":
            file["feats"] = vector[None]
            file.attrs.update(encoder="titan", feat_type="slide", stamp_version="2.3.0")
        else:
            file["features"] = vector[None]


@pytest.fixture(scope="module", params=["trident (D,)", "stamp (1, D)", "plain (1, D)"])
def cohort(request, tmp_path_factory):
    folder, rng, rows = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0), []
    for i in range(40):
        vector = rng.normal(size=6).astype(np.float32)
        vector[2] += 4 * (i % 2)
        _write(folder / "f" / f"s{i:02d}.h5", vector, request.param)
        months = (round(float(rng.exponential(30 * np.exp(-vector[2]))), 3), int(i % 5 > 0))
        rows.append((f"s{i:02d}", "ab"[i % 2], round(float(vector[2]), 2), f"G{1 + i % 2}", *months))
    pd.DataFrame(rows, columns=["slide_id", "kind", "value", "grade", "months", "died"]).to_csv(
        folder / "t.csv", index=False
    )
    return folder


def test_each_way_to_hold_a_vector_trains_and_predicts(cohort, tmp_path):
    read = open_features(cohort / "f").read("s01")
    assert read.features.shape == (1, 6) and read.coords_l0.tolist() == [[0, 0]] and read.info.patch_size_l0 == 0
    run = train(cohort / "f", cohort / "t.csv", "kind", tmp_path / "run", head="linear", **FAST)
    assert run.metrics["slide"]["auroc"]["value"] > 0.95
    found = predict(run, cohort / "f").table
    np.testing.assert_allclose(found["prob_b"], run.predictions["prob_b"], atol=1e-6)
    row = SlideRow("s01", cohort / "t.csv", patient_id="s01")
    [drawn] = export_heatmaps(run.path, cohort / "f", [row], HeatmapConfig(workers=1), tmp_path / "maps")
    assert drawn.status == "failed" and "one row, a vector of the whole slide" in drawn.reason


@pytest.mark.parametrize(
    ("task", "target", "more", "figure", "least"),
    [
        ("regression", "value", {}, "pearson", 0.8),
        ("ordinal", "grade", {"order": "G1,G2"}, "kappa", 0.8),
        ("survival", "months", {"event": "died"}, "c_index", 0.65),
    ],
)
def test_every_kind_of_target(cohort, tmp_path, task, target, more, figure, least):
    run = train(cohort / "f", cohort / "t.csv", target, tmp_path / "run", head="linear", task=task, **more, **FAST)
    assert run.metrics["slide"][figure]["value"] > least


def test_heads_that_compare_patches_say_what_to_take(cohort, tmp_path, capsys):
    for head in ("needle", "clam-sb", "clam-mb"):
        with pytest.raises(RequestError, match=r"each slide is a single row of features, and .* take --head linear"):
            train(cohort / "f", cohort / "t.csv", "kind", tmp_path / head, head=head, **FAST)
    from mil.cohort.cohort import load_cohort
    from mil.training.command import _single_rows

    loaded = load_cohort(cohort / "f", cohort / "t.csv", "kind")
    assert "no map to draw" in "\n".join(loaded.warnings)
    assert _single_rows(loaded, "mean") == _single_rows(loaded, "linear") == []
    assert "no patches to weigh" in _single_rows(loaded, "gated-abmil")[0]
