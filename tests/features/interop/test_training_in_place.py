"""Other tools' feature folders, trained on as they are."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
from foreign_features import INFO, as_clam, as_stamp, as_trident, reasons

from features.feature_file import UNKNOWN, Embeddings, read_embeddings, write_embeddings
from mil.cohort.cohort import load_cohort
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.run.predict import predict_folder
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.display import Display, plain_console
from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow


@pytest.fixture
def cohort(tmp_path):
    """The same 16 slides as ours, CLAM's and TRIDENT's; a label table."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        slide_id, label = f"s{i:02d}", i // 2 % 2
        features = rng.normal(size=(12, 6)).astype(np.float16)
        features[:3, 0] += np.float16(4 * label)
        coords = np.array([(x * 1024, y * 1024) for y in range(3) for x in range(4)])
        info = replace(INFO, slide_id=slide_id, patch_size_px=512, patch_size_l0=1024, width_l0=4096, height_l0=3072)
        info = replace(info, store_digest=f"store-{i}", slide_fingerprint=f"file-{i}")
        write_embeddings(tmp_path / f"ours/{slide_id}.h5", Embeddings(features, coords, info))
        as_clam(tmp_path / "clam", slide_id, features, coords)
        with h5py.File(as_trident(tmp_path / "trident", slide_id, features, coords), "a") as file:
            file["coords"].attrs.update(level0_width=4096, level0_height=3072)
        rows.append((slide_id, f"p{i // 2}", ("normal", "tumour")[label]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "diagnosis"]).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


CONFIG = TrainConfig(folds=2, epochs=4, bootstrap=100, device="cpu")


def test_training_in_place_gives_the_same_predictions(cohort, capsys):
    for layout in ("ours", "clam", "trident"):
        out = cohort / f"run-{layout}"
        display = Display(plain_console())
        assert not train_mil(cohort / layout, cohort / "labels.csv", "diagnosis", out, CONFIG, display).unreadable
        said = capsys.readouterr()
        assert ("do not say which encoder" in said.out + said.err) == (layout == "clam")
    for layout in ("clam", "trident"):
        for name in ("predictions.csv", "metrics.json", "fold-0/checkpoint.safetensors"):
            assert (cohort / f"run-{layout}" / name).read_bytes() == (cohort / "run-ours" / name).read_bytes()
    made_from = {n: json.loads((cohort / f"run-{n}/provenance.json").read_text()) for n in ("ours", "clam", "trident")}
    assert made_from["clam"]["features_sha256"] == made_from["ours"]["features_sha256"]
    unknown = dict.fromkeys(("weights_sha256", "normalisation", "precision"), UNKNOWN)
    expected = {**unknown, "input_px": 0, "dim": 6, "mpp": None}
    assert made_from["clam"]["features"] == {**expected, "encoder": UNKNOWN}
    assert made_from["trident"]["features"] == {**expected, "encoder": "uni_v1"}
    found = predict_folder(cohort / "run-clam", cohort / "clam", {}, "cpu")
    assert len(found.table) == 16 and not found.failures
    with pytest.raises(RequestError, match="encoder 'unknown' instead of 'resnet18'"):
        predict_folder(cohort / "run-ours", cohort / "clam", {}, "cpu")


def test_what_training_in_place_says_and_refuses(cohort, tmp_path):
    for i, file in enumerate(sorted((cohort / "ours").glob("*.h5"))):
        embeddings = read_embeddings(file)
        features = embeddings.features.astype(np.float32) + np.float32(1e-5) * (i == 3)
        as_clam(tmp_path / "c", file.stem, features, embeddings.coords_l0)
        as_stamp(tmp_path / "stamp", file.stem, embeddings.features, embeddings.coords_l0 * 0.25)
    said = load_cohort(tmp_path / "c", cohort / "labels.csv", "diagnosis").warnings
    assert "features of 1 slide are float32 and are rounded to float16 for training" in said
    assert any("export-heatmaps will refuse them" in line for line in said)
    assert load_cohort(cohort / "clam", cohort / "labels.csv", "diagnosis").warnings == said[1:]
    with pytest.raises(RequestError, match="its coordinates are in µm and it does not say the slide's µm per pixel"):
        load_cohort(tmp_path / "stamp", cohort / "labels.csv", "diagnosis")


def test_heatmaps_need_the_geometry(cohort, phantom_slide):
    out = cohort / "maps"
    for layout in ("clam", "trident"):
        with h5py.File(next((cohort / layout).rglob("s00.h5")), "a") as file:
            if layout == "trident":
                file["coords"].attrs.update(level0_width=4000, level0_height=3008)
        train_mil(cohort / layout, cohort / "labels.csv", "diagnosis", cohort / f"run-{layout}", CONFIG)
    rows = [SlideRow("s00", path=phantom_slide)]
    found = export_heatmaps(cohort / "run-clam", cohort / "clam", rows, HeatmapConfig(workers=1), out / "clam")
    assert found.counts == {"failed": 1}
    assert "did not say how large a patch and the slide are" in reasons(out / "clam")["s00"]
    found = export_heatmaps(cohort / "run-trident", cohort / "trident", rows, HeatmapConfig(workers=1), out / "t")
    assert found.counts == {"done": 1}
    collection = json.loads((out / "t/s00.geojson").read_text())
    assert collection["features"][1]["geometry"]["coordinates"][0][0] == [1024, 0]
