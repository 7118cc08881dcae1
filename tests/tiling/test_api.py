"""`from tiling import tile`: the command in Python, without its terminal and without its traces."""

import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tiling import RequestError, TilingConfig, tile
from tiling.store.patches import PatchStore

SETTINGS = TilingConfig(mpp=1.0, patch_px=128, workers=1)


def state():
    """What a library call must leave as it was."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    return handlers, Image.MAX_IMAGE_PIXELS, list(warnings.filters), dict(np.geterr()), sys.modules["__main__"]


def test_twice_in_one_process_with_the_output_replaced_in_between(phantom_slide, tmp_path, capfd):
    seen = []
    before = state()
    first = tile(phantom_slide, tmp_path, SETTINGS, lambda *told: seen.append(told))
    [outcome] = first
    assert seen == [(outcome, 1, 1)] and first.counts == {"done": 1} and outcome.patches > 5
    assert len(PatchStore(tmp_path / "phantom.zarr")) == outcome.patches
    refused = tile(phantom_slide, tmp_path, SETTINGS, patch_px=64)
    assert refused.counts == {"failed": 1} and "patch_px: found 128, wanted 64" in refused.failed[0].reason
    [replaced] = tile(phantom_slide, tmp_path, SETTINGS, patch_px=64, overwrite=True)
    assert replaced.status == "done" and replaced.patches > outcome.patches
    assert PatchStore(tmp_path / "phantom.zarr").info.patch_size_px == 64
    assert tile(str(phantom_slide), str(tmp_path), SETTINGS, patch_px=64).counts == {"skipped": 1}
    assert state() == before and capfd.readouterr() == ("", "")


def test_in_two_threads_at_once(phantom_slide, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(tile, phantom_slide, tmp_path / name, SETTINGS) for name in "ab"]
        assert [run.result().counts for run in runs] == [{"done": 1}, {"done": 1}]
    files = [{f.name: f.read_bytes() for f in (tmp_path / name / "phantom.zarr").rglob("*.*")} for name in "ab"]
    assert files[0] == files[1] and "zarr.json" in files[0]


def test_a_data_frame_is_a_slide_table(phantom_slide, tmp_path):
    frame = pd.DataFrame({"slide_id": ["x"], "path": [phantom_slide], "mpp": [0.5], "label": [np.nan]})
    [outcome] = tile(frame, tmp_path, SETTINGS)
    assert outcome.status == "done" and PatchStore(tmp_path / "x.zarr").info.mpp_l0 == 0.5


@pytest.mark.parametrize(
    ("slides", "given", "said"),
    [
        ("nowhere", {}, "no such file, folder or slide table"),
        ("nowhere.csv", {}, "no such slide table"),
        (pd.DataFrame({"slide_id": ["a", "b"], "path": ["a.svs", None]}), {}, "row 3: path is empty"),
        (".", {"patch_px": 0}, "--patch-px is 0, expected at least 16 pixels"),
        (".", {"pixels": "png"}, "--pixels png: expected jpeg, zstd or reference"),
        (".", {"patch_size": 3}, "no setting patch_size; close to it is patch_px"),
        (".", {"part": "3/2"}, "--part 3/2: expected i/n"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(tmp_path, slides, given, said, phantom_slide):
    slides = phantom_slide if isinstance(slides, str) and slides == "." else slides
    with pytest.raises(RequestError, match=said):
        tile(slides, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
from tiling import tile
outcomes = tile(sys.argv[1], sys.argv[2], mpp=1.0, patch_px=128, workers=2)
print(outcomes.counts, "torch" in sys.modules)
"""


def test_a_script_needs_no_guard_and_never_loads_torch(phantom_slide, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = [sys.executable, script, phantom_slide, tmp_path / "out"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("{'done': 1} False\n", "")


def test_the_package_itself_is_light():
    code = "import sys, tiling; print(any(name in sys.modules for name in ('numpy', 'pandas', 'zarr', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    with pytest.raises(ImportError):
        from tiling import nothing  # noqa: F401
