"""Finished slides are seen at a quick look; whatever is not surely finished goes to the workers."""

import json
import os
import shutil

import pytest

from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.finished import finished_store
from tiling.jobs.locks import is_held, lock, process
from tiling.manifest import SlideRow
from tiling.slides.files import slide_fingerprint

CONFIG = TilingConfig(mpp=1.0, patch_px=128, workers=1)


@pytest.fixture(scope="module")
def tiled(phantom_slide, tmp_path_factory):
    """(row, out) of a finished slide; the slide is a copy that may be changed."""
    folder = tmp_path_factory.mktemp("tiled")
    row = SlideRow("s", shutil.copy(phantom_slide, folder / "s.svs"))
    assert tile_slides([row], CONFIG, folder / "out").counts == {"done": 1}
    return row, folder / "out"


@pytest.fixture
def no_workers(monkeypatch):
    def refuse(module):
        raise AssertionError("workers were asked for")

    monkeypatch.setattr("tiling.all_slides.load_ahead", refuse)


def test_where_all_is_finished_no_worker_starts_and_the_summary_says_so(tiled, no_workers):
    row, out = tiled
    [outcome] = tile_slides([row], CONFIG, out)
    assert (outcome.status, outcome.reason) == ("skipped", "already done") and outcome.patches > 5
    assert '"skipped": 1' in (out / "summary.json").read_text()


@pytest.mark.parametrize("change", ["settings", "mpp", "overwrite", "slide", "picture", "held"])
def test_what_is_not_surely_finished_is_for_workers(tiled, no_workers, change):
    row, out = tiled
    config = {"settings": TilingConfig(mpp=1.0, patch_px=64), "overwrite": TilingConfig(mpp=1.0, overwrite=True)}
    if change == "mpp":
        row = SlideRow("s", row.path, mpp=0.3)
    if change == "slide":
        content = row.path.read_bytes()
        row.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if change == "picture":
        (out / "qc/s.jpg").rename(out / "qc/away")
    try:
        with pytest.raises(AssertionError, match="workers were asked for"):
            if change == "held":
                with lock(out / "s.zarr"):
                    tile_slides([row], CONFIG, out)
            else:
                tile_slides([row], config.get(change, CONFIG), out)
    finally:
        if change == "slide":
            row.path.write_bytes(content)
        if change == "picture":
            (out / "qc/away").rename(out / "qc/s.jpg")


def test_a_damaged_store_fails_with_its_reason(tiled, tmp_path):
    row, out = tiled
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/s.zarr/coords_l0")
    outcomes = tile_slides([row], CONFIG, tmp_path / "out")
    assert outcomes.counts == {"failed": 1} and "array 'coords_l0' is missing or damaged" in outcomes.failed[0].reason


def test_what_is_asked_of_a_store_is_what_it_was_made_with(tiled):
    row, out = tiled
    assert len(finished_store(row, CONFIG, out / "s.zarr")) > 5
    assert finished_store(row, TilingConfig(mpp=1.0, patch_px=128, min_tissue=0.4), out / "s.zarr") is None
    assert finished_store(row, CONFIG, out / "other.zarr") is None


def test_a_slide_file_is_read_once_and_again_when_it_changes(tiled, tmp_path, monkeypatch):
    """The look knows it by name, size and time of change, unless it was changed just now."""
    old, read = tiled[0].path, []
    path = shutil.copy(old, tmp_path / "s.svs")
    row, out = SlideRow("s", path), tmp_path / "out"

    def noted(slide):
        read.append(slide)
        return slide_fingerprint(slide)

    monkeypatch.setattr("tiling.seen.slide_fingerprint", noted)
    assert tile_slides([row], CONFIG, out).counts == {"done": 1}
    assert tile_slides([row], CONFIG, out).counts == {"skipped": 1} and read == [path]  # too new to be trusted
    os.utime(path, (1e9, 1e9))
    for _ in range(3):
        assert tile_slides([row], CONFIG, out).counts == {"skipped": 1}
    assert read == [path] * 2
    assert str(tmp_path) not in (out / "seen.json").read_text() and "svs" not in (out / "seen.json").read_text()
    assert tile_slides([row], TilingConfig(mpp=1.0, patch_px=64, workers=1), out).failed  # other options
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert "made differently" in tile_slides([row], CONFIG, out).failed[0].reason
    path.write_bytes(content)
    (out / "seen.json").write_text("{ half")
    assert tile_slides([row], CONFIG, out).counts == {"skipped": 1}


def test_what_was_just_tiled_is_known_at_the_next_start(tiled, tmp_path, monkeypatch):
    path = shutil.copy(tiled[0].path, tmp_path / "s.svs")
    os.utime(path, (1e9, 1e9))
    row, out = SlideRow("s", path), tmp_path / "out"
    assert tile_slides([row], CONFIG, out).counts == {"done": 1}
    monkeypatch.setattr("tiling.seen.slide_fingerprint", lambda slide: pytest.fail("read again"))
    assert tile_slides([row], CONFIG, out).counts == {"skipped": 1}


@pytest.mark.parametrize("name", ["seen.json", "summary.json", "qc.html"])
def test_what_a_job_left_that_was_killed_while_it_wrote_is_cleared(tiled, tmp_path, name):
    """Also where all was known, and there is nothing new to write. The job ran on another machine, minutes ago."""
    row, out = tiled[0], shutil.copytree(tiled[1], tmp_path / "out")
    os.utime(row.path, (1e9, 1e9))  # so that it is noted
    tile_slides([row], CONFIG, out)
    before = sorted(os.listdir(out))
    (out / f"{name}.lock").write_text(json.dumps({**process(os.getpid()), "host": "elsewhere"}))
    os.utime(out / f"{name}.lock", (1e9, 1e9))
    (out / f".{name}.tmp-1-ab").touch()
    assert tile_slides([row], CONFIG, out).counts == {"skipped": 1}
    assert sorted(os.listdir(out)) == before


def test_what_was_seen_is_written_under_a_lock(tiled, tmp_path, monkeypatch):
    """Without one nothing says that a half-written file is nobody's."""
    row, out, held = tiled[0], shutil.copytree(tiled[1], tmp_path / "out"), []
    (out / "seen.json").unlink(missing_ok=True)
    os.utime(row.path, (1e9, 1e9))
    monkeypatch.setattr("tiling.seen.write_text", lambda path, text: held.append(is_held(path)))
    assert tile_slides([row], CONFIG, out).counts == {"skipped": 1} and held == [True]
