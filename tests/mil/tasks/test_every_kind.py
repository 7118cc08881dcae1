"""Each kind of target through the whole line: training, prediction, maps, viewer, report, comparison, resuming."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from mil import predict, train
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.maps.forms.registry import FORMS, load_form
from mil.report.report import write_report
from mil.viewer.views import list_slides, slide_view
from tiling.jobs.execution import IN_THIS_PROCESS
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import load_table
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide

FAST = dict(
    folds=2, inner_folds=2, epochs=25, embed_dim=16, attention_dim=4, bootstrap=100, device="cpu", learning_rate=0.01
)
SLIDES = 48
OF_CLASSES = ("ordinal", "several")
KINDS = {  # name: target, further settings
    "regression": ("til", {"task": "regression"}),
    "survival": ("months", {"task": "survival", "event": "died"}),
    "ordinal": ("grade", {"task": "ordinal", "order": "G1,G2,G3"}),
    "entry": ("months", {"task": "survival", "event": "died", "entry": "since"}),
    "several": ("much,grade", {}),
    "columns": ("months", {"task": "survival", "event": "died", "covariates": "age,sex"}),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, write_features):
    """Label table, features and a slide file: all targets grow with the share of patches shifted in feature 1."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "f").mkdir()
    rng, rows = np.random.default_rng(5), []
    tifffile.imwrite(folder / "s00.tif", np.full((1024, 8192, 3), 200, np.uint8), photometric="rgb", tile=(256, 256))
    of_file = {"width_l0": 8192, "height_l0": 1024, "slide_fingerprint": slide_fingerprint(folder / "s00.tif")}
    for i in range(SLIDES):
        share = rng.beta(1, 2)
        features = rng.normal(size=(20, 6))
        features[rng.random(20) < share, 1] += 3
        write_features(folder / "f", f"s{i:02d}", features, **(of_file if i == 0 else {}))
        months, followed = 30 * rng.exponential(np.exp(-4 * share)), rng.uniform(2, 40)
        path = folder / "s00.tif" if i == 0 else ""
        grade = f"G{1 + int(np.searchsorted([0.2, 0.4], share))}"
        seen = (round(min(months, followed), 1), int(months <= followed))
        much = "" if i % 5 == 3 else ("no", "yes")[int(share > 0.25)]
        told = (round(seen[0] / 3, 2) if i % 2 else 0, "" if i % 9 == 4 else 40 + i % 30, "fm"[i % 2])
        rows.append((f"s{i:02d}", f"p{i:02d}", path, round(100 * share, 1), grade, much, *seen, *told))
    columns = ["slide_id", "patient_id", "path", "til", "grade", "much", "months", "died", "since", "age", "sex"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "slides.csv", index=False)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def run(kind, cohort):
    target, more = KINDS[kind]
    return train(cohort / "f", cohort / "slides.csv", target, cohort / kind, **more, **FAST)


def test_predictions_are_the_same_everywhere(run, cohort):
    task, table = run.task, run.predictions.set_index("slide_id")
    again = predict(run, cohort / "f", cohort / "slides.csv").table.set_index("slide_id")
    columns = [*task.value_columns, *task.further_columns]
    said = [name for name in ["prediction", *columns] if name.endswith("prediction")]
    assert again["in_training"].all() and len(again) == SLIDES
    assert np.allclose(*(of[[name for name in columns if name not in said]] for of in (again, table)))
    assert again[said].equals(table[said])
    seen = run.attention("s07")
    assert seen.task == task and np.allclose(
        seen.probabilities, table.loc["s07", list(task.value_columns)].to_numpy(float)
    )
    assert len(run.patient_predictions) == SLIDES and run.metrics["patient"].keys() == run.metrics["slide"].keys()


def test_the_report_is_drawn(run, tmp_path, true_charts):
    out = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(out / "charts")
    write_report(out)
    drawn = {path.name for path in (out / "charts").iterdir()}
    assert drawn == {path.name for path in (run.path / "charts").iterdir()} and drawn
    assert all(path.read_bytes().startswith((b"\x89PNG", b"%PDF")) for path in (out / "charts").iterdir())
    assert (out / "report.html").read_text().count("<svg") == len(drawn) / 2


def test_no_figure_is_without_an_interval(run):
    def figures(of):
        for name, value in of.items():
            yield from [(name, value)] if "value" in value else figures(value)

    for level in ("slide", "patient"):
        for name, figure in figures(run.metrics[level]):
            assert figure["value"] is None or figure["low"] <= figure["value"] <= figure["high"], name
    shown = run.task.figure_titles
    assert set(shown) <= run.metrics["slide"].keys() and run.task.headline in shown and run.task.watched in shown


def test_maps_in_every_form_and_the_viewer(run, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mil.maps.export.run_slides",
        lambda rows, work, out, _, listener: run_slides(rows, work, out, IN_THIS_PROCESS, listener),
    )
    rows = load_table(cohort / "slides.csv", needs_path=False)
    measured = run.task.kind in ("ordinal", "regression")  # one with classes, one without: it takes long
    config = HeatmapConfig(formats=",".join(FORMS), faithfulness=measured, device="cpu")
    outcomes = export_heatmaps(run.path, cohort / "f", rows[:1], config, tmp_path)
    assert outcomes.counts == {"done": 1}, [outcome.reason for outcome in outcomes]
    assert {f"s00{load_form(name).ENDING}" for name in FORMS} <= {path.name for path in tmp_path.iterdir()}
    scores = pd.read_csv(tmp_path / "s00.csv")
    shift = scores["score"].corr(pd.Series(_feature(cohort, "s00", 1)))
    assert shift > 0.3  # more is warmer where the target is higher
    listed = list_slides(run.path, rows)
    assert all(slide["said"] and np.isfinite(slide["loss"]) for slide in listed)
    view = slide_view(run.path, rows[0], open_slide(rows[0].path)).description()
    assert view["layers"] and ("log-odds" in str(view["layers"])) == (run.task.kind in OF_CLASSES)


def _feature(cohort, slide_id, column):
    from features.feature_file import read_embeddings

    return read_embeddings(cohort / "f" / f"{slide_id}.h5").features[:, column].astype(float)


def test_the_page_tensorboard_and_charts_are_there(run):
    page = run.report.read_text()
    assert ("AUROC" in page) == (run.task.kind in OF_CLASSES) and page.count("<svg") >= 2 and 'id="result"' in page
    models = sum(run.history(k)["member"].nunique() for k in run.folds)
    assert len(list((run.path / "tensorboard").glob("fold-*/events*"))) == models > 2
    assert len(list((run.path / "charts").glob("*.pdf"))) == page.count("<svg")


def test_two_runs_are_compared_by_the_headline(run, cohort, kind):
    target, more = KINDS[kind]
    out = cohort / f"{kind}-mean"
    told = dict(head="mean", compare=str(run.path), **more, **FAST)
    other = train(cohort / "f", cohort / "slides.csv", target, out, **told)
    assert other.task.against(other.predictions, run.predictions, _few())[run.task.headline]["value"] == pytest.approx(
        run.metrics["slide"][run.task.headline]["value"]
    )
    with pytest.raises(Exception, match=f"--compare {run.path}: that run"):
        train(cohort / "f", cohort / "slides.csv", "grade", cohort / "classes", compare=str(run.path), **FAST)


def _few():
    from mil.metrics.bootstrap import Bootstrap

    return Bootstrap(100, 0)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(run, cohort, kind):
    target, more = KINDS[kind]
    out = cohort / f"{kind}-stopped"
    shutil.copytree(run.path, out)
    for name in ("metrics.json", "predictions.csv", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "fold-1")
    train(cohort / "f", cohort / "slides.csv", target, out, **more, **FAST)
    for name in ("metrics.json", "predictions.csv", "predictions_patient.csv", "report.html", "fold-1/history.csv"):
        assert (out / name).read_bytes() == (run.path / name).read_bytes(), name
