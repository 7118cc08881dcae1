"""export-heatmaps from a trained run: what is written, skipped and refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from dask_threads import dask_worker

from mil.cli.heatmaps import main
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.maps.forms.registry import FORMS, load_form
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError
from tiling.jobs.execution import IN_THIS_PROCESS
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow
from tiling.slides.files import slide_fingerprint

TOY = """
ENDING = ".toy.txt"
HELP = "the scores and nothing else"

def write(path, drawn):
    path.write_text(f"{drawn.provenance['scores']} {drawn.scores.values.tolist()}")

def read_provenance(path, drawn):
    return {**drawn.provenance, "scores": path.read_text().split()[0]}
"""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(
        "mil.maps.export.run_slides",
        lambda rows, work, out, _, listener: run_slides(rows, work, out, IN_THIS_PROCESS, listener),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_cohort, write_features):
    """The run, its features, and the slide s00 with its file, which a test may not change."""
    folder = tmp_path_factory.mktemp("trained")
    table, slide = make_cohort(folder / "f", slides=16), folder / "s00.tif"
    tifffile.imwrite(slide, np.full((1024, 8192, 3), 200, np.uint8), photometric="rgb", tile=(256, 256))
    shape = {"width_l0": 8192, "height_l0": 1024, "slide_fingerprint": slide_fingerprint(slide)}
    write_features(folder / "f", "s00", np.random.default_rng(0).normal(size=(20, 8)), **shape)
    config = TrainConfig(folds=2, epochs=3, device="cpu")
    train_mil(folder / "f", table, "diagnosis", folder / "run", config)
    return folder / "run", folder / "f", SlideRow("s00", path=slide, patient_id="p00")


def test_every_form_from_a_run(trained, tmp_path):
    run, features, row = trained
    endings = [load_form(name).ENDING for name in FORMS]
    config = HeatmapConfig(formats=",".join(FORMS), score="gradient", faithfulness=True, device="cpu")
    assert export_heatmaps(run, features, [row], config, tmp_path).counts == {"done": 1}
    assert {f"s00{ending}" for ending in endings} <= {path.name for path in tmp_path.iterdir()}
    read = pd.read_csv(tmp_path / "s00.csv")
    assert len(read) == 20 and (read.x_um == read.x_l0 * 0.25).all()
    assert set(read.score_is) == {"input × gradient of the log-odds of tumour"}
    index = (tmp_path / "index.html").read_text()
    assert "Faithfulness" in index and all(f'href="s00{ending}"' in index for ending in endings)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("s00.*")}
    assert export_heatmaps(run, features, [row], config, tmp_path).counts == {"skipped": 1}
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("s00.*")}
    for name in FORMS:
        other = HeatmapConfig(formats=name)  # another score
        [refused] = export_heatmaps(run, features, [row], other, tmp_path)
        assert refused.status == "failed" and "was made differently" in refused.reason
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("s00.*")}


def test_workers_of_dask_draw_the_same(trained, tmp_path):
    run, features, row = trained
    chosen = {"formats": "png,geojson,csv", "score": "gradient", "device": "cpu"}
    assert export_heatmaps(run, features, [row], HeatmapConfig(**chosen), tmp_path / "here").counts == {"done": 1}
    with dask_worker() as address:
        there = HeatmapConfig(**chosen, scheduler=address)
        assert export_heatmaps(run, features, [row], there, tmp_path / "there").counts == {"done": 1}
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("s00*")}
    assert len(here) == 3
    assert here == {path.name: path.read_bytes() for path in (tmp_path / "there").glob("s00*")}


def test_one_fold_shows_the_slides_that_it_did_not_see(trained, tmp_path):
    run, features, row = trained
    splits = pd.read_csv(run / "splits.csv")
    tested = splits[(splits.slide_id == "s00") & (splits.split == "test")].fold.item()
    one = HeatmapConfig(formats="csv", fold=tested, device="cpu")
    assert export_heatmaps(run, features, [row], one, tmp_path / "one").counts == {"done": 1}
    seen = HeatmapConfig(formats="csv", fold=1 - tested, device="cpu")
    assert export_heatmaps(run, features, [row], seen, tmp_path / "seen").counts == {"failed": 1}
    assert "was trained on this slide" in (tmp_path / "seen" / "failures.csv").read_text()


def test_another_file_is_refused(trained, tmp_path):
    run, features, _ = trained
    other = tmp_path / "s00.tif"
    tifffile.imwrite(other, np.full((1024, 8192, 3), 201, np.uint8), photometric="rgb", tile=(256, 256))
    rows = [SlideRow("s00", path=other, patient_id="p00")]
    assert export_heatmaps(run, features, rows, HeatmapConfig(), tmp_path / "out").counts == {"failed": 1}
    assert "is another file than the one" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_new_form_is_one_file_and_one_line(trained, tmp_path, monkeypatch):
    run, features, row = trained
    (tmp_path / "toy_form.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMS, "toy", "toy_form")
    (tmp_path / "slides.csv").write_text(f"slide_id,path,patient_id\ns00,{row.path},p00\n")
    asked = [run, features, "--slides", tmp_path / "slides.csv", "--out", tmp_path / "out", "--formats", "png,toy"]

    def ended(*more):
        monkeypatch.setattr(sys, "argv", ["export-heatmaps", *map(str, [*asked, *more])])
        with pytest.raises(SystemExit) as code:
            main()
        return code.value.code

    assert ended() == 0
    digest, values = (tmp_path / "out" / "s00.toy.txt").read_text().split(" ", 1)
    assert len(digest) == 64 and len(json.loads(values)) == 20
    assert 'href="s00.toy.txt" title="the scores and nothing else"' in (tmp_path / "out" / "index.html").read_text()
    made = (tmp_path / "out" / "s00.toy.txt").stat().st_mtime_ns
    assert ended() == 0 and (tmp_path / "out" / "s00.toy.txt").stat().st_mtime_ns == made
    assert ended("--score", "attention") == 1
    assert ended("--score", "attention", "--overwrite") == 0
    assert (tmp_path / "out" / "s00.toy.txt").read_text().split(" ", 1)[0] != digest


@pytest.mark.parametrize("slide_id", ["s00.gallery", "s00.Contours", "a.faithfulness", "a.lesions", "a.ome"])
def test_a_slide_whose_files_could_be_those_of_another_is_refused_alone(trained, tmp_path, slide_id):
    run, features, row = trained
    config = HeatmapConfig(formats="csv", workers=1)
    outcomes = export_heatmaps(run, features, [row, replace(row, slide_id=slide_id)], config, tmp_path / "out")
    states = {outcome.slide_id: outcome.status for outcome in outcomes.slides}
    assert states == {"s00": "done", slide_id: "failed"}
    assert "rename it in the slide table" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_head_that_says_nothing_of_a_patch_gets_neither_maps_nor_pictures(trained, tmp_path, monkeypatch):
    _, features, row = trained
    monkeypatch.setattr("mil.heads.zoo.bag_stats._TREES", 10)
    monkeypatch.setattr("mil.training.command.write_pictures", None)  # is not called
    settings = TrainConfig(head="bag-stats", folds=4, val_fraction=0, bootstrap=100, device="cpu")
    train_mil(features, features / "labels.csv", "diagnosis", tmp_path / "run", settings)
    with pytest.raises(RequestError, match=r"bag-stats .* says nothing of a single one.*--head gated-abmil"):
        export_heatmaps(tmp_path / "run", features, [row], HeatmapConfig(device="cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_replaced_is_read_again(trained, tmp_path):
    """Twice in one process, as in a notebook."""
    _, features, row = trained
    run = tmp_path / "run"
    config = HeatmapConfig(formats="csv", score="gradient", device="cpu", overwrite=True)
    maps = []
    for seed in (1, 2, 2):
        settings = TrainConfig(folds=2, epochs=3, device="cpu", seed=seed, overwrite=len(maps) == 1)
        train_mil(features, features / "labels.csv", "diagnosis", run, settings)
        assert export_heatmaps(run, features, [row], config, tmp_path / "out").counts == {"done": 1}
        maps.append(pd.read_csv(tmp_path / "out" / "s00.csv").score.to_numpy())
    fresh = tmp_path / "fresh"
    shutil.copytree(run, fresh)
    assert export_heatmaps(fresh, features, [row], config, tmp_path / "out").counts == {"done": 1}
    assert np.array_equal(maps[1], maps[2])
    assert np.array_equal(maps[1], pd.read_csv(tmp_path / "out" / "s00.csv").score)
    assert not np.allclose(maps[0], maps[1])


def test_wrong_requests(command, tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "golden" / "run-v1", tmp_path / "run")
    (tmp_path / "s.csv").write_text("slide_id,path\na,s.csv\n")
    base = ["export-heatmaps", tmp_path / "run", tmp_path, "--slides", tmp_path / "s.csv", "--out", tmp_path / "out"]
    for more, said in [(["--formats", "svg"], "--formats svg"), (["--slide-id", "b"], "--slide-id b: not in")]:
        done = command(*base, *more)
        assert done.returncode == 2 and said in done.stderr
    rows = [SlideRow("a", path=tmp_path / "s.csv")]
    with pytest.raises(RequestError, match="no run directory"):
        export_heatmaps(tmp_path / "nowhere", tmp_path, rows, HeatmapConfig(), tmp_path / "out")


def test_wrong_slides_fail_with_the_reason(tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "golden" / "run-v1", tmp_path / "run")
    slide = tmp_path / "a.tif"
    tifffile.imwrite(slide, np.zeros((300, 400, 3), np.uint8), photometric="rgb")
    rows = [SlideRow("s00", path=slide), SlideRow("a", path=slide)]  # the run tested s00, of another size; not a
    config = HeatmapConfig(formats="geojson", workers=1)
    assert export_heatmaps(tmp_path / "run", tmp_path, rows, config, tmp_path / "out").counts == {"failed": 2}
    reasons = pd.read_csv(tmp_path / "out/failures.csv").set_index("slide_id")["reason"]
    assert "is this the same slide?" in reasons["s00"] and "no such feature file" in reasons["a"]
    assert not (tmp_path / "out/s00.geojson").exists()
