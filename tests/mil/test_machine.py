"""check-machine says what is there, what is not and what to do; what is needed and missing ends it with 1."""

from types import SimpleNamespace

import pytest

from mil import machine
from mil.cli import check_machine as cli
from mil.machine import OPTIONAL, check_machine


def by_part(folder, *required):
    return {finding.part: finding for finding in check_machine(folder, frozenset(required))}


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch):
    """The disk that the tests run on may be nearly full: that is no fault of what they look at."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=50e9))


def test_a_machine_that_runs_these_tests_lacks_nothing_needed(tmp_path):
    found = by_part(tmp_path)
    assert [finding for part, finding in found.items() if part not in OPTIONAL and not finding.there] == []
    assert "OpenSlide" in found["openslide"].text and "WebP" in found["codecs"].text
    assert found["folder: lock"].text == "a lock keeps others out"
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(machine.EXTRAS, "wandb", "no_such_module")
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    found = by_part(tmp_path, "gpu")
    assert found["wandb"].text == "not installed; pip install 'slidemil[wandb]'" and not found["wandb"].needed
    assert not found["gpu"].there and found["gpu"].needed and "all runs on the CPU" in found["gpu"].text
    for arguments, code, said in (
        (["--folder", str(tmp_path)], 0, "not there"),
        (["--folder", str(tmp_path), "--require", "gpu"], 1, "MISSING"),
        (["--folder", str(tmp_path / "none")], 1, "is no folder; make it"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == code and said in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["--require", "quantum"])
    assert ended.value.code == 2 and "expected some of gpu" in capsys.readouterr().err


def test_a_folder_that_keeps_nobody_out_or_is_full_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tiling.jobs.locks.os.link", lambda source, target: None)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e9))
    monkeypatch.setattr("tiling.jobs.atomic._swapped", lambda one, other: False)
    found = by_part(tmp_path)
    assert "two jobs can hold one lock" in found["folder: lock"].text and not found["folder: lock"].there
    assert found["folder: room"].text.startswith("2.0 GB free; ") and not found["folder: room"].there
    assert "cannot be exchanged" in found["folder: write and rename"].text


def test_a_part_that_breaks_is_a_part_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.imagecodecs, "jpeg2k_encode", lambda pixels: 1 / 0)
    assert by_part(tmp_path)["codecs"].text == "division by zero"
