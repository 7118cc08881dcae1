"""Every script of measurements and of stress starts, from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(script for room in ("benchmarks", "stress") for script in (Path(__file__).parent / room).rglob("*.py"))
LOAD = """
import gc, os, runpy, sys
import h5py, matplotlib.pyplot, pandas, skimage.morphology, sklearn.linear_model, tifffile, zarr  # what many
import distributed, timm, torch, torchvision  # of them need, once for all
import features.api, mil.api, mil.diagnosis.diagnose, mil.maps.export, tiling.api
gc.freeze()
for script in sys.argv[1:]:
    if not (child := os.fork()):  # each has a process of its own
        sys.path[0], sys.argv = os.path.dirname(script), [script]
        runpy.run_path(script)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(script)
"""


@pytest.mark.long
def test_each_script_finds_what_it_imports(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *SCRIPTS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(SCRIPTS) > 20 and not done.stdout, done.stdout + done.stderr
