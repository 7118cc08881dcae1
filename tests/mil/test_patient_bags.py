"""Patients as bags: one label a patient, all its slides in one bag, through the whole line."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from dask_threads import dask_worker

from features.feature_file import read_embeddings
from mil import predict, train
from mil.cohort.cohort import load_cohort
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import MissingInput
from mil.diagnosis.inputs import Sources, load_inputs
from mil.heads.bags import pack
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.maps.grid import colour_scale
from mil.maps.judges import slide_models
from mil.maps.pictures import read_figure
from mil.maps.scores import patch_scores
from mil.metrics.bootstrap import Bootstrap
from mil.run.attention import attention_path, read_attention, read_bag
from mil.run.checkpoint import read_checkpoint
from mil.run.ensemble import load_head
from mil.run.predict import predict_folder
from mil.run.tables import read_predictions, read_splits
from mil.tasks.task import Target
from mil.training.display import _figures
from mil.viewer.views import list_slides
from tiling.jobs.errors import RequestError
from tiling.jobs.execution import IN_THIS_PROCESS
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow

FAST = dict(
    folds=2, inner_folds=2, epochs=40, embed_dim=16, attention_dim=4, bootstrap=100, device="cpu", learning_rate=0.01
)
PATIENTS, SLIDES_EACH = 20, 3
TARGET = Target("diagnosis", bag="patient")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, write_features):
    """20 patients of three slides; in every second one slide shows it, in 4 of its 8 to 10 patches."""
    folder, rng, rows = tmp_path_factory.mktemp("patients"), np.random.default_rng(3), []
    for p in range(PATIENTS):
        months = round(30 * rng.exponential(4.0 ** -(p % 2)), 1)
        of_patient = (p % 2 + p / PATIENTS, f"G{1 + p % 2}", months, int(p % 5 > 0))
        for s in range(SLIDES_EACH):
            slide_id = f"{'cab'[s]}{p:02d}"  # ids are not in the order of patients
            features = rng.normal(size=(8 + s, 6))
            if p % 2 and s == p % SLIDES_EACH:
                features[2:6, 1] += 7
            write_features(folder / "f", slide_id, features)
            label = "" if s == 1 else ("normal", "tumour")[p % 2]  # given on some slides of a patient
            rows.append((slide_id, f"p{p:02d}", label, *of_patient))
    columns = ["slide_id", "patient_id", "diagnosis", "til", "grade", "months", "died"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "t.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(cohort):
    return train(cohort / "f", cohort / "t.csv", "diagnosis", cohort / "run", bag="patient", **FAST)


def _slides(cohort):
    return pd.read_csv(cohort / "t.csv").groupby("patient_id")["slide_id"].agg(sorted)


@pytest.mark.parametrize("memory", ["ram", "mapped"])
def test_a_bag_is_the_slides_one_after_another(cohort, memory, tmp_path):
    loaded = load_cohort(cohort / "f", cohort / "t.csv", TARGET, memory, tmp_path)
    assert len(loaded.features) == PATIENTS and len(loaded.infos) == PATIENTS * SLIDES_EACH
    for i, (patient, slides) in enumerate(_slides(cohort).items()):
        files = [read_embeddings(cohort / "f" / f"{name}.h5") for name in slides]
        assert loaded.bag_ids[i] == patient and [loaded.infos[k].slide_id for k in loaded.slides_of(i)] == slides
        np.testing.assert_array_equal(loaded.features[i], np.concatenate([of.features for of in files]))
        for k, of in zip(loaded.slides_of(i), files, strict=True):
            np.testing.assert_array_equal(loaded.coords_l0[k], of.coords_l0)
            np.testing.assert_array_equal(loaded.slide_features()[k], of.features)
            if memory == "ram":  # a view: nothing is held twice
                whole = loaded.features[i].untyped_storage()
                assert loaded.slide_features()[k].untyped_storage().data_ptr() == whole.data_ptr()


def test_all_slides_of_a_patient_are_in_one_part(run):
    splits = read_splits(run.path)
    assert len(splits) == 2 * PATIENTS * SLIDES_EACH
    assert splits.groupby(["repeat", "fold", "patient_id"])[["split", "inner"]].nunique().eq(1).all(axis=None)


def test_a_patient_is_predicted_once_with_its_slides_named(run, cohort):
    table = run.predictions
    assert list(table)[:2] == ["patient_id", "slide_ids"] and table["patient_id"].is_unique and len(table) == PATIENTS
    assert table.set_index("patient_id")["slide_ids"].str.split("|").to_dict() == _slides(cohort).to_dict()
    assert run.metrics["slide"] is None and run.metrics["patient"]["auroc"]["value"] > 0.9
    assert run.metrics["counts"]["slides"] == PATIENTS * SLIDES_EACH and run.metrics["counts"]["patients"] == PATIENTS
    patients = run.patient_predictions
    assert (patients["slides"] == SLIDES_EACH).all() and "auroc" in run.metrics["against_mean"]
    shared = ["patient_id", "label", "prediction", "prob_tumour"]
    pd.testing.assert_frame_equal(patients[shared], table[shared])


def test_predictions_and_attention_are_those_of_one_bag_by_hand(run, cohort):
    """One patient after another, in float64, and the attention in the very slide and patch."""
    splits = read_splits(run.path)
    for row in run.predictions.itertuples():
        checkpoint = read_checkpoint(run.path, row.fold)
        head = load_head(checkpoint, torch.device("cpu")).double()
        names = _slides(cohort)[row.patient_id]
        files = [read_embeddings(cohort / "f" / f"{name}.h5") for name in names]
        with torch.no_grad():
            said = head(pack([torch.from_numpy(np.concatenate([of.features for of in files])).double()]))
        answer = checkpoint.task.calibrated(checkpoint.task.answers(said.logits[0]), checkpoint.calibration)
        assert row.prob_tumour == pytest.approx(answer[1], abs=1e-5)
        assert set(splits.loc[splits["slide_id"].isin(names) & (splits["split"] == "test"), "fold"]) == {row.fold}
        seen = [read_attention(attention_path(run.path, name)) for name in names]
        np.testing.assert_allclose(np.concatenate([of.attention for of in seen]), said.attention, atol=1e-5)
        assert sum(of.share for of in seen) == pytest.approx(1) and {of.patient_id for of in seen} == {row.patient_id}
        assert {of.bag for of in seen} == {row.slide_ids}
        for of, file in zip(seen, files, strict=True):
            assert of.coords.tolist() == file.coords_l0.tolist()
        if row.label == "tumour":
            top = max(seen, key=lambda of: of.attention.max())
            place = int(row.patient_id[1:])
            assert top.slide_id == f"{'cab'[place % SLIDES_EACH]}{place:02d}" and 2 <= top.attention.argmax() < 6


def test_the_order_of_a_patients_slides_does_not_count(run, cohort, tmp_path):
    table = pd.read_csv(cohort / "t.csv")
    shuffled = table.sample(frac=1, random_state=0)
    again = train(cohort / "f", shuffled, "diagnosis", tmp_path / "run", bag="patient", **FAST)
    assert (again.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()
    loaded = load_cohort(cohort / "f", table, TARGET)
    head = load_head(read_checkpoint(run.path, 0), torch.device("cpu"))
    parts = [loaded.slide_features()[k] for k in loaded.slides_of(5)]
    torch.testing.assert_close(head(pack([torch.cat(parts)])).logits, head(pack([torch.cat(parts[::-1])])).logits)


def test_slides_that_disagree_are_named_with_their_rows(cohort, tmp_path):
    table = pd.read_csv(cohort / "t.csv", keep_default_na=False)
    table.loc[5, "diagnosis"] = "normal"  # row 7, of the second patient, whose row 5 says tumour
    table.loc[table["patient_id"] == "p04", "diagnosis"] = ""
    table["split"] = "train"
    table.loc[0, "split"] = "test"
    with pytest.raises(RequestError) as error:
        load_cohort(cohort / "f", table, TARGET)
    said = str(error.value)
    assert "3 faults\n" in said
    assert "patient p01: diagnosis is 'tumour' in row 5, 'normal' in row 7; with --bag patient it is one" in said
    assert "patient p04: diagnosis is empty in all rows (14, 15, 16)" in said
    assert "patient p00: split is 'test' in row 2, 'train' in row 3" in said


def test_slides_that_fail_are_named_and_the_others_are_the_bag(cohort, tmp_path):
    shutil.copytree(cohort / "f", tmp_path / "f")
    (tmp_path / "f" / "a00.h5").unlink()
    for name in ("c03", "a03", "b03"):
        (tmp_path / "f" / f"{name}.h5").write_bytes(b"nothing")
    loaded = load_cohort(tmp_path / "f", cohort / "t.csv", TARGET)
    assert set(loaded.left_out) == {"a00", "a03", "b03", "c03"} and len(loaded.features) == PATIENTS - 1
    assert len(loaded.features[0]) == 8 + 10 and loaded.bag_ids[3] == "p04"
    said = "\n".join(loaded.warnings)
    assert "patients without any slide that can be used, left out: 1: p03" in said
    assert "patients of whom some slides are left out, 1: p00" in said and "without a feature file" in said


def test_a_run_that_was_stopped_ends_with_the_same_bytes(run, cohort, tmp_path):
    out = shutil.copytree(run.path, tmp_path / "run")
    for name in ("metrics.json", "predictions.csv", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "fold-1")
    shutil.rmtree(out / "attention")
    train(cohort / "f", cohort / "t.csv", "diagnosis", out, bag="patient", **FAST)
    names = ["metrics.json", "predictions.csv", "predictions_patient.csv", "report.html", "fold-1/history.csv"]
    for name in (*names, "fold-1/checkpoint.safetensors", "attention/a01.h5", "splits.csv"):
        assert (out / name).read_bytes() == (run.path / name).read_bytes(), name


def test_a_run_does_not_go_on_with_other_bags(run, cohort):
    table = read_predictions(run.path)[["patient_id", "label"]]
    slides = pd.read_csv(cohort / "t.csv").drop(columns="diagnosis").merge(table, on="patient_id")
    with pytest.raises(RequestError, match=r"settings\.bag"):
        train(cohort / "f", slides, "label", run.path, **FAST)


def test_runs_of_slides_and_of_patients_are_compared_by_patient(run, cohort, tmp_path):
    labels = run.predictions.set_index("patient_id")["label"]
    table = pd.read_csv(cohort / "t.csv")
    table["diagnosis"] = table["patient_id"].map(labels)
    given = dict(splits=str(run.path / "splits.csv"), compare=str(run.path))
    slides = train(cohort / "f", table, "diagnosis", tmp_path / "slides", **given, **FAST)
    assert slides.metrics["counts"]["patients"] == PATIENTS and len(slides.predictions) == PATIENTS * SLIDES_EACH
    given = dict(splits=str(run.path / "splits.csv"), compare=str(slides.path))
    other = train(cohort / "f", table, "diagnosis", tmp_path / "patients", bag="patient", **given, **FAST)
    found = other.task.against(other.patient_predictions, slides.patient_predictions, Bootstrap(100, 0))
    assert found["auroc"]["value"] == pytest.approx(slides.metrics["patient"]["auroc"]["value"])


def test_the_report_names_the_slides_of_a_patient(run):
    page = run.report.read_text()
    assert "<h2>Patients" in page or ">Patients<" in page
    for row in run.predictions.itertuples():
        shares = {name: read_attention(attention_path(run.path, name)).share for name in row.slide_ids.split("|")}
        best = max(shares, key=shares.get)
        assert f"{best} {shares[best]:.0%}" in page


def test_the_terminal_has_the_figures_of_patients_alone(run, cohort):
    table = _figures(run.metrics, read_checkpoint(cohort / "run", 0).task)
    assert str(table.title).startswith("Test patients") and len(table.columns) == 2
    assert "undefined" not in list(table.columns[1].cells)
    of_slides = {**run.metrics, "counts": {**run.metrics["counts"], "slides": 9}, "slide": run.metrics["patient"]}
    table = _figures({**of_slides, "patient": None}, read_checkpoint(cohort / "run", 0).task)
    assert len(table.columns) == 2 and table.columns[1].header == "slides (9)"


def test_predictions_of_a_folder_are_those_of_the_run(run, cohort):
    found = predict(run, cohort / "f").table.set_index("patient_id")
    expected = run.predictions.set_index("patient_id")
    assert found["slide_ids"].to_dict() == expected["slide_ids"].to_dict() and found["in_training"].all()
    np.testing.assert_allclose(found["prob_tumour"], expected["prob_tumour"], atol=1e-6)


def test_new_patients_need_a_table_and_lacking_slides_are_named(run, cohort, tmp_path):
    (tmp_path / "f").mkdir()
    renamed = {"c01": "x", "a01": "y", "b01": "z"}  # a tumour patient under other names
    for old, new in renamed.items():
        shutil.copy(cohort / "f" / f"{old}.h5", tmp_path / "f" / f"{new}.h5")
    with pytest.raises(RequestError, match="nobody says whose these slides are"):
        predict(run, tmp_path / "f")
    table = pd.DataFrame({"slide_id": ["x", "y", "gone"], "patient_id": ["new"] * 3})
    found = predict(run, tmp_path / "f", table)
    assert found.table[["patient_id", "slide_ids"]].to_numpy().tolist() == [["new", "x|y"]]
    assert set(found.failures) == {"z", "gone"} and "patient is not known" in found.failures["z"]
    assert "no feature file; the patient new is judged without it" in found.failures["gone"]


def test_workers_of_dask_predict_the_same_patients(run, cohort, tmp_path):
    for path in (cohort / "f").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "c03.h5").unlink()
    (tmp_path / "c03.h5").write_bytes(b"half a file")
    (tmp_path / "a05.h5").unlink()
    here = predict_folder(run.path, tmp_path, [], "cpu")
    with dask_worker() as address:
        there = predict_folder(run.path, tmp_path, [], "cpu", scheduler=address)
    assert there.table.to_csv() == here.table.to_csv() and len(here.table) == PATIENTS
    assert there.failures == here.failures and set(here.failures) == {"c03", "a05"}


def test_scores_of_a_patients_slides_have_one_scale(run):
    for patient in run.predictions["slide_ids"]:
        names = patient.split("|")
        bags = [read_bag(run.path, name) for name in names]
        scores = [patch_scores(own, "attention", others=others) for own, *others in bags]
        assert len({(colour_scale(of).low, colour_scale(of).high) for of in scores}) == 1
        assert np.concatenate([of.values for of in scores]).mean() == pytest.approx(1, abs=1e-5)  # of the patient's
        ranks = [patch_scores(own, "attention", "", "rank", others=others).values for own, *others in bags]
        assert max(of.max() for of in ranks) == 27 and [own.slide_id for own, *_ in bags] == names


def test_maps_and_the_viewer_say_which_slide_of_the_patient(run, cohort, tmp_path, write_features, monkeypatch):
    monkeypatch.setattr(
        "mil.maps.export.run_slides",
        lambda rows, work, out, _, listener: run_slides(rows, work, out, IN_THIS_PROCESS, listener),
    )
    tifffile.imwrite(tmp_path / "s.tif", np.full((1024, 8192, 3), 200, np.uint8), photometric="rgb", tile=(256, 256))
    size = {"width_l0": 8192, "height_l0": 1024}
    for name in ("a", "b"):
        shutil.copy(tmp_path / "s.tif", tmp_path / f"{name}.tif")
        features = read_embeddings(cohort / "f" / f"{name}01.h5").features
        write_features(tmp_path / "f", name, features, **size)
    rows = [SlideRow(name, tmp_path / f"{name}.tif", patient_id="new") for name in ("a", "b")]
    config = HeatmapConfig(formats="png,csv", score="attention", device="cpu")
    outcomes = export_heatmaps(run.path, tmp_path / "f", rows, config, tmp_path / "out")
    assert outcomes.counts == {"done": 2}, [outcome.reason for outcome in outcomes]
    made = [read_figure(tmp_path / "out" / f"{name}.png") for name in ("a", "b")]
    assert (
        all("of the attention of patient new" in of["title"] for of in made)
        and made[0]["colours"] == made[1]["colours"]
    )
    scores = [pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("a", "b")]
    assert sum(of["attention"].sum() for of in scores) == pytest.approx(1, abs=1e-5)
    torch.set_num_threads(2)
    models = slide_models(run.path, tmp_path / "f", rows[1], ["a", "b"], "cpu")
    assert torch.get_num_threads() == 1  # several workers would else wait for each other's threads
    everything = models.answer("tumour", np.arange(10))
    own, other = models.attention("")
    assert (own.slide_id, other.slide_id) == ("b", "a") and everything == pytest.approx(own.probabilities[1])
    assert models.gradients().shape == (len(own.attention) + len(other.attention), 2)
    listed = {slide["id"]: slide for slide in list_slides(run.path, [SlideRow("a01"), SlideRow("c01"), SlideRow("q")])}
    said = run.predictions.set_index("patient_id").loc["p01"]
    assert listed["a01"]["prediction"] == listed["c01"]["prediction"] == said["prediction"]
    assert "not tested" in listed["q"]["brief"]


@pytest.mark.parametrize(
    ("task", "target", "more"),
    [("regression", "til", {}), ("ordinal", "grade", {"order": "G1,G2"}), ("survival", "months", {"event": "died"})],
)
def test_every_kind_of_target_is_of_the_patient(cohort, tmp_path, task, target, more):
    told = dict(bag="patient", task=task, **more, **FAST)
    run = train(cohort / "f", cohort / "t.csv", target, tmp_path / "run", **told)
    table = run.predictions.set_index("patient_id")
    assert len(table) == PATIENTS and run.metrics["slide"] is None
    assert set(run.task.figure_titles) <= run.metrics["patient"].keys()
    again = predict(run, cohort / "f").table.set_index("patient_id")
    for name in run.task.value_columns:
        np.testing.assert_allclose(again[name].astype(float), table[name].astype(float), atol=1e-5)
    page = run.report.read_text()
    assert "All slides of a patient are one bag" in page and ">Patients<" in page
    shutil.rmtree(run.path / "fold-1")
    before = (run.path / "predictions.csv").read_bytes()
    for name in ("metrics.json", "predictions.csv"):
        (run.path / name).unlink()
    train(cohort / "f", cohort / "t.csv", target, run.path, **told)
    assert (run.path / "predictions.csv").read_bytes() == before


def test_diagnose_cohort_says_why_it_asks_no_run_of_patients(run, cohort, tmp_path):
    labels = run.predictions.set_index("patient_id")["label"]
    table = pd.read_csv(cohort / "t.csv")
    table["diagnosis"] = table["patient_id"].map(labels)
    sources = Sources(cohort / "f", table, "diagnosis", run=run.path)
    inputs = load_inputs(sources, DiagnoseConfig(folds=2))
    assert not inputs.has_run
    with pytest.raises(MissingInput, match="all slides of a patient are one bag"):
        inputs.require_run()


def test_columns_are_told_once_a_patient(cohort, tmp_path):
    table = pd.read_csv(cohort / "t.csv")
    table["age"] = [40 + i // SLIDES_EACH if i % SLIDES_EACH == 0 else None for i in range(len(table))]
    told = load_cohort(cohort / "f", table, TARGET, covariates=("age",)).covariates
    assert len(told.values) == PATIENTS
    run = train(cohort / "f", table, "diagnosis", tmp_path / "run", bag="patient", covariates="age", **FAST)
    again = predict(run, cohort / "f", table).table.set_index("patient_id")
    table.loc[1, "age"] = 99
    np.testing.assert_allclose(again["prob_tumour"], run.predictions.set_index("patient_id")["prob_tumour"], atol=1e-5)
    with pytest.raises(RequestError, match="patient p00: age is '40' in row 2, '99' in row 3"):
        load_cohort(cohort / "f", table, TARGET, covariates=("age",))
