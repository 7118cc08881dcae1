"""All commands on a real, weakly labelled cohort: 58 breast images of 10 source slides, through to the heatmaps."""

import json

import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from ucsb_breast import unpack


@pytest.fixture(scope="module")
def cohort(data, tmp_path_factory):
    """The slide table."""
    return unpack(data / "ucsb_breast", tmp_path_factory.mktemp("ucsb"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_from_images_to_heatmaps(cohort, command, tmp_path):
    patches, features, run, out = (tmp_path / name for name in ("patches", "features", "run", "heatmaps"))

    def do(name, *arguments):
        done = command(name, *arguments)
        assert done.returncode == 0, done.stderr
        return done

    do("tile-slides", cohort, "--out", patches, "--mpp", "native", "--patch-px", "224", "--tissue", "all")
    do("extract-features", patches, "--out", features, "--encoder", "efficientnet-lite0")
    settings = ("--folds", "3", "--inner-folds", "3", "--epochs", "20", "--bootstrap", "500")
    do("train-mil", features, "--labels", cohort, "--target", "diagnosis", "--out", run, *settings)
    predictions, splits = (pd.read_csv(run / f"{name}.csv") for name in ("predictions", "splits"))
    assert len(predictions) == 58 and predictions["slide_id"].is_unique
    for _, fold in splits.groupby("fold"):
        assert (fold.groupby("patient_id")["split"].nunique() == 1).all()
    auroc = json.loads((run / "metrics.json").read_text())["slide"]["auroc"]
    truth = predictions["label"] == "malignant"
    assert auroc["value"] == pytest.approx(roc_auc_score(truth, predictions["prob_malignant"]))
    assert auroc["value"] > 0.85 and auroc["low"] < auroc["value"] < auroc["high"] <= 1

    some = list(predictions["slide_id"][:3])
    maps = ("--formats", "png,geojson,csv", "--workers", "1", "--out", out, "--slide-id", *some)
    do("export-heatmaps", run, features, "--slides", cohort, *maps)
    assert sorted(p.name for p in out.glob("*.png")) == [f"{name}.png" for name in some]
    for name in some:
        assert Image.open(out / f"{name}.png").size[0] > 1000
        assert len(json.loads((out / f"{name}.geojson").read_text())["features"]) == 16
    again = do("export-heatmaps", run, features, "--slides", cohort, *maps)
    assert "3 skipped" in again.stdout

    finer = ["--finer", "2", "--formats", "csv", "--workers", "1", "--out", tmp_path / "finer", "--slide-id", some[0]]
    do("export-heatmaps", run, features, "--slides", cohort, *finer)
    tables = (
        pd.read_csv(folder / f"{some[0]}.csv").set_index(["x_l0", "y_l0"]) for folder in (out, tmp_path / "finer")
    )
    coarse, fine = tables
    assert (len(coarse), len(fine)) == (16, 59)
    half_on_slide = coarse[coarse.index.get_level_values("y_l0") < 672]  # the others show more padding than slide
    same = fine.loc[half_on_slide.index]  # the very patches of the coarse map, embedded among others
    assert len(same) == 12 and (same["logit_malignant"] - half_on_slide["logit_malignant"]).abs().max() < 0.02

    do("predict-mil", run, features, "--out", tmp_path / "predictions.csv")
    ensemble = pd.read_csv(tmp_path / "predictions.csv")
    assert len(ensemble) == 58 and set(ensemble["prediction"]) == {"benign", "malignant"}
