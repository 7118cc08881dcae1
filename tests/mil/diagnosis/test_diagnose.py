"""The frame of diagnose-cohort: order, what is missing, what fails, what is written, and its use from Python."""

import json
import os
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from dask_threads import dask_worker
from planted_cohorts import Plan, plant

from mil import train
from mil.cli.diagnose import main
from mil.diagnosis import diagnose as library
from mil.diagnosis.catalogue import FINDINGS
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.diagnose import diagnose, make_findings, worst_first
from mil.diagnosis.finding import Details, Diagnosis, Finding, MissingInput, Picture
from mil.diagnosis.inputs import Sources, load_inputs
from mil.diagnosis.page import counts_of, diagnosis_html, write_diagnosis
from mil.pages.chart import Chart
from tiling.jobs.errors import RequestError

YAML = Path(__file__).parents[3] / "configs" / "diagnose.yaml"
QUICK = ("duplicates", "signal", "shortcut", "wrong-labels", "influence", "scale")


@pytest.fixture(scope="module")
def inputs(planted):
    return load_inputs(Sources(planted.parent, planted, "diagnosis"), DiagnoseConfig(bootstrap=100))


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "features").mkdir()
    return Sources(tmp_path / "features", plant(tmp_path / "features", Plan(slides=24, patches=10)), "diagnosis")


def entry(key, title, find, share=1):
    return SimpleNamespace(KEY=key, TITLE=title, SHARE=share, find=find)


def fails(inputs):
    raise ZeroDivisionError("no <patch> here")


def lacks(inputs):
    raise MissingInput("Give --patches.")


def finds(inputs):
    numbers = {"gap & more": {"value": 0.25, "low": 0.1, "high": float("nan")}, "label": {"value": 1.0, "p": 1e-9}}
    pictures = [
        Picture("Curve", "a < b", svg=Chart((0, 1), (0, 1)).svg("nothing")),
        Picture("Dot <i>", "seen", image=b"\x89PNG..", wide=True),
    ]
    return Finding("a", "A", "fault", "It is 5 < 6.", "Do it.", numbers, pictures, [Details("T", ("x",), (("<b>",),))])


ENTRIES = [entry("f", "Failing", fails), entry("m", "Lacking", lacks), entry("a", "A", finds)]


def test_a_finding_that_fails_ends_no_other_and_the_worst_comes_first(inputs, tmp_path, capsys):
    started = []
    findings = worst_first(make_findings(inputs, ENTRIES, started.append))
    assert started == [0, 1, 2] and [f.key for f in findings] == ["a", "f", "m"]
    assert findings[1].error == "ZeroDivisionError: no <patch> here" and "in fails" in findings[1].traceback
    assert findings[2].remedy == "Give --patches." and not findings[2].error
    assert capsys.readouterr() == ("", "")
    cohort = inputs.cohort
    diagnosis = Diagnosis("diag<nosis>", cohort.encoder, counts_of(cohort), tuple(findings))
    write_diagnosis(tmp_path, diagnosis)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [f["severity"] for f in content["findings"]] == ["fault", "missing", "missing"]
    assert content["findings"][0]["numbers"]["gap & more"] == {"value": 0.25, "low": 0.1, "high": None}
    assert "traceback" not in content["findings"][1]
    assert content["counts"] == {
        "slides": 40,
        "patients": 20,
        "patches": 839,
        "slides_of_class": {"normal": 20, "tumour": 20},
    }
    page = (tmp_path / "diagnosis.html").read_text()
    assert page == diagnosis_html(diagnosis) and page.startswith("<!doctype html>") and "{{" not in page
    for text in ("diag&lt;nosis&gt;", "It is 5 &lt; 6.", "no &lt;patch&gt; here", "p &lt; 0.001", "&lt;b&gt;"):
        assert text in page
    assert "<svg" in page and 'alt="Dot &lt;i&gt;"' in page and "1 fault, 2 not looked at" in page
    assert "<b>What to give.</b> Give --patches." in page and page.count("<b>What to do.</b>") == 2
    assert page.index('id="a"') < page.index('id="f"') and str(inputs.sources.features) not in page
    assert page.count("src=") == 1 and 'src="data:image/png;base64,iVBO' in page  # nothing is fetched
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_library_says_all_and_leaves_the_process_as_it_was(sources, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(library, "FINDINGS", tuple(entry for entry in FINDINGS if entry.KEY in QUICK))

    def state():
        return torch.get_num_threads(), torch.get_rng_state().sum(), np.random.get_state()[1].sum(), dict(os.environ)

    before, config, told = state(), DiagnoseConfig(bootstrap=100, permutations=19), []
    first = diagnose(sources, config, progress=told.append)
    given = Sources(str(sources.features), pd.read_csv(sources.table), "diagnosis")  # as in a notebook
    again = diagnose(given, config, out=str(tmp_path / "out"))
    assert state() == before and capsys.readouterr() == ("", "")
    assert asdict(first) == asdict(again) and not first.failed
    assert {finding.key for finding in first.findings} == set(QUICK) and first.counts["slides"] == 24
    assert first["signal"].numbers["AUROC of averaged features"]["value"] > 0.9
    assert json.loads((tmp_path / "out/diagnosis.json").read_text())["target"] == "diagnosis"
    assert [at.number for at in told] == sorted(at.number for at in told) and told[0].done == 0
    assert all(a.done <= b.done for a, b in pairwise(told)) and told[-1].findings == len(QUICK)
    with pytest.raises(KeyError):
        first["unknown"]


def test_workers_find_the_same(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "FINDINGS", tuple(entry for entry in FINDINGS if entry.KEY in QUICK))
    config, told = DiagnoseConfig(bootstrap=100, permutations=19, folds=3), []
    diagnose(sources, config, out=tmp_path / "here")
    with dask_worker() as address:
        diagnose(sources, replace(config, scheduler=address), out=tmp_path / "there", progress=told.append)
    for name in ("diagnosis.json", "diagnosis.html"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert [at.number for at in told] == list(range(len(QUICK))) and told[-1].done == 1


def test_the_command_prints_and_its_exit_code_says_whether_a_finding_failed(sources, monkeypatch, capsys, tmp_path):
    command = [str(sources.features), "--labels", str(sources.table), "--target", "diagnosis"]
    command += ["--out", str(tmp_path / "out"), "--bootstrap", "100"]
    for entries, code in ((ENTRIES, 1), (ENTRIES[1:], 0)):
        monkeypatch.setattr(library, "FINDINGS", entries)
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == code
    out, err = capsys.readouterr()
    assert "[1/3] Failing: 0% (0% of all)\n" in out and "[3/3] A: 0% (67% of all)\n" in out
    assert "FAULT   A: It is 5 < 6.\n" in out and f"diagnosis  {tmp_path / 'out/diagnosis.html'}\n" in out
    assert err.count("Traceback") == 1 and "ZeroDivisionError: no <patch> here" in err


def test_a_folder_that_is_not_there_is_refused(sources, tmp_path):
    for field, flag in (("patches", "--patches"), ("random_features", "--features-random")):
        with pytest.raises(RequestError, match=f"{flag} .*nowhere: no such folder"):
            diagnose(replace(sources, **{field: tmp_path / "nowhere"}))
    with pytest.raises(RequestError, match=r"--scales .*nowhere: no such folder"):
        diagnose(replace(sources, scales=("nowhere",)))


def test_the_yaml_file_equals_the_defaults_and_says_why():
    text = YAML.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == asdict(DiagnoseConfig())
    for line in text.splitlines()[1:]:
        assert len(line.partition("#")[2].split()) >= 3, line


@pytest.mark.parametrize(("name", "value"), [("folds", 1), ("bootstrap", 99), ("sample_patches", 0), ("seed", -1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected at least"):
        replace(DiagnoseConfig(), **{name: value})


@pytest.mark.parametrize(("task", "event"), [("regression", ""), ("survival", "died")])
def test_other_kinds_of_target_are_asked_by_their_strata(tmp_path, task, event):
    """Without a trace of failure; what has no meaning is named."""
    (tmp_path / "f").mkdir()
    table = plant(tmp_path / "f", Plan(slides=40, patches=10, shift=4.0))
    frame = pd.read_csv(table, dtype=str)
    rng, tumour = np.random.default_rng(0), frame["diagnosis"] == "tumour"
    frame["months"] = (rng.uniform(1, 9, size=40) + 8 * ~tumour).round(1).astype(str)
    frame["died"], frame["site"] = (rng.random(40) < 0.6).astype(int).astype(str), "a"
    frame.loc[rng.permutation(40)[:20], "site"] = "b"
    out, told = tmp_path / "run", dict(folds=2, epochs=2, bootstrap=100, device="cpu", task=task, event=event)
    train(tmp_path / "f", frame, "months", out, **told)
    config = DiagnoseConfig(folds=2, bootstrap=100, permutations=19, task=task, event=event)
    heard: list[str] = []
    found = diagnose(Sources(tmp_path / "f", frame, "months", run=out), config, warn=heard.append)
    assert not found.failed, [finding.traceback for finding in found.findings if finding.error]
    assert found["training"].verdict == "Not looked at: it is for classes alone."
    assert any("findings that tell classes apart are asked of" in text for text in heard)
    assert sum(found.counts["slides_of_class"].values()) == 40
    assert found["duplicates"].severity == found["shortcut"].severity == "fine"


def test_of_several_targets_each_is_asked_on_the_slides_that_have_its_label(sources):
    frame = pd.read_csv(sources.table, dtype=str)
    frame["pr"] = frame["diagnosis"].where(frame.index % 4 > 0, "")
    with pytest.raises(RequestError, match="give --target diagnosis, then the same for pr: slides without a label"):
        load_inputs(replace(sources, table=frame, target="diagnosis,pr"), DiagnoseConfig())
    heard: list[str] = []
    inputs = load_inputs(replace(sources, table=frame, target="pr"), DiagnoseConfig(), warn=heard.append)
    assert len(inputs.cohort.slide_ids) == 18 and any("without a label, ignored: 6" in text for text in heard)
