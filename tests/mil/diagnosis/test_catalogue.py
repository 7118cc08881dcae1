"""A finding is one file and one line in the catalogue, and knows the estimators but no other finding."""

import ast
import importlib.util
import json
import pkgutil
from pathlib import Path

import pytest
from planted_cohorts import Plan, plant

from mil.diagnosis import catalogue, findings, numbers
from mil.diagnosis import diagnose as library
from mil.diagnosis.catalogue import FINDINGS
from mil.diagnosis.inputs import Sources

ROOM = "mil.diagnosis"
ABOVE = {"numbers": {"inputs", "findings", "catalogue", "diagnose", "display", "page", "sheet", "slide_pictures"}}
ABOVE["findings"] = ABOVE["numbers"] - {"inputs", "sheet", "slide_pictures"}
TOY = """
from mil.diagnosis.finding import Finding

KEY, TITLE, SHARE = "toy", "Toy", 1


def find(inputs):
    return Finding(KEY, TITLE, "fault", f"{len(inputs.cohort.slide_ids)} slides of lead.", "Take wood.")
"""


def imported_from_the_room(path: Path) -> set[str]:
    """`findings`, `inputs`, …: what a file takes from mil.diagnosis, deferred imports too."""
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[2] for name in names if name.startswith(f"{ROOM}.")}


@pytest.mark.parametrize("floor", ["numbers", "findings"])
def test_numbers_know_no_finding_and_findings_not_each_other(floor):
    folder = Path({"numbers": numbers, "findings": findings}[floor].__file__).parent
    for path in folder.glob("*.py"):
        assert not imported_from_the_room(path) & ABOVE[floor], path.name


def test_every_file_of_findings_is_listed_once():
    files = {module.name for module in pkgutil.iter_modules(findings.__path__)}
    assert sorted(files) == sorted(entry.__name__.split(".")[-1] for entry in FINDINGS)
    for name in ("KEY", "TITLE"):
        assert len({getattr(entry, name) for entry in FINDINGS}) == len(FINDINGS)
    assert all(entry.SHARE > 0 and callable(entry.find) for entry in FINDINGS)


def test_a_new_finding_is_one_file_and_one_line(tmp_path, monkeypatch):
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    spec = importlib.util.spec_from_file_location(f"{ROOM}.findings.toy", file)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    monkeypatch.setattr(library, "FINDINGS", (*catalogue.FINDINGS[2:3], toy))  # the line
    (tmp_path / "features").mkdir()
    sources = Sources(tmp_path / "features", plant(tmp_path / "features", Plan(slides=20)), "diagnosis")
    told = []
    diagnosis = library.diagnose(sources, out=tmp_path / "out", progress=told.append)
    assert [finding.key for finding in diagnosis.findings] == ["toy", "duplicates"]
    assert diagnosis["toy"].verdict == "20 slides of lead."
    assert [(at.title, at.done) for at in told] == [("Slides that are there twice", 0), ("Toy", 5 / 6)]
    assert json.loads((tmp_path / "out/diagnosis.json").read_text())["findings"][0]["remedy"] == "Take wood."
    assert '<section id="toy" class="fault">' in (tmp_path / "out/diagnosis.html").read_text()
