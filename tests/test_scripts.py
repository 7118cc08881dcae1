"""Every script of measurements and of stress starts: in a process of its own, from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(script for room in ("benchmarks", "stress") for script in (Path(__file__).parent / room).rglob("*.py"))
LOAD = "import runpy, sys; sys.path[0], sys.argv = sys.argv[1], sys.argv[2:]; runpy.run_path(sys.argv[0])"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_finds_what_it_imports(script: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, script.parent, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
