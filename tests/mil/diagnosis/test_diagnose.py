"""The frame of diagnose-cohort: order, what is missing, what fails, and what is written."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from mil.cohort.cohort import load_cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.diagnosis.catalogue import FINDINGS, Entry
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.diagnose import make_findings, worst_first
from mil.diagnosis.finding import Details, Finding, MissingInput, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.page import diagnosis_html, write_diagnosis
from mil.pages.chart import Chart

YAML = Path(__file__).parents[3] / "configs" / "diagnose.yaml"


@pytest.fixture(scope="module")
def inputs(planted):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    folds = make_folds(cohort, SplitPlan())
    return Inputs(planted.parent, planted, "diagnosis", cohort, tuple(folds), DiagnoseConfig(bootstrap=100))


def fails(inputs):
    raise ZeroDivisionError("no <patch> here")


def lacks(inputs):
    raise MissingInput("Give --patches.")


def finds(inputs):
    numbers = {"gap & more": {"value": 0.25, "low": 0.1, "high": float("nan")}, "label": {"value": 1.0, "p": 1e-9}}
    pictures = [Picture("Curve", "a < b", svg=Chart((0, 1), (0, 1)).svg("nothing"))]
    return Finding("a", "A", "fault", "It is 5 < 6.", "Do it.", numbers, pictures, [Details("T", ("x",), (("<b>",),))])


def test_a_finding_that_fails_ends_no_other_and_the_worst_comes_first(inputs, tmp_path, capsys):
    entries = [Entry("f", "Failing", fails, 1), Entry("m", "Lacking", lacks, 1), Entry("a", "A", finds, 1)]
    started = []
    findings = worst_first(make_findings(inputs, entries, started.append))
    assert started == [0, 1, 2] and [f.key for f in findings] == ["a", "f", "m"]
    assert findings[1].error == "ZeroDivisionError: no <patch> here" and "Traceback" in capsys.readouterr().err
    assert findings[2].remedy == "Give --patches." and not findings[2].error
    write_diagnosis(tmp_path, inputs, findings)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [f["severity"] for f in content["findings"]] == ["fault", "missing", "missing"]
    assert content["findings"][0]["numbers"]["gap & more"] == {"value": 0.25, "low": 0.1, "high": None}
    assert content["counts"] == {
        "slides": 40,
        "patients": 20,
        "patches": 839,
        "slides_of_class": {"normal": 20, "tumour": 20},
    }
    page = (tmp_path / "diagnosis.html").read_text()
    assert page == diagnosis_html(inputs, findings) and "__" not in page
    assert (
        "It is 5 &lt; 6." in page and "no &lt;patch&gt; here" in page and "p &lt; 0.001" in page
    ) or "p < 0.001" in page
    assert page.index('id="a"') < page.index('id="f"') and str(inputs.folder) not in page
    assert "src=" not in page and "http" not in page.replace("http-equiv", "")  # nothing is fetched


def test_every_key_is_used_once():
    keys = [entry.key for entry in FINDINGS]
    assert len(set(keys)) == len(keys)


def test_the_yaml_file_equals_the_defaults_and_says_why():
    text = YAML.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == asdict(DiagnoseConfig())
    for line in text.splitlines()[1:]:
        assert len(line.partition("#")[2].split()) >= 3, line


@pytest.mark.parametrize(("name", "value"), [("folds", 1), ("bootstrap", 99), ("sample_patches", 0), ("seed", -1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected at least"):
        replace(DiagnoseConfig(), **{name: value})
