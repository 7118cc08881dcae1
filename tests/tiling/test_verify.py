import json
import shutil

import pytest

from tiling.jobs.errors import SlideError
from tiling.verify import verify_store


def _flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(command, phantom_slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    done = command("tile-slides", phantom_slide, "--out", out, "--patch-px", "128", "--mpp", "1")
    assert done.returncode == 0, done.stderr
    return out / "phantom.zarr"


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "phantom.zarr")


@pytest.mark.filterwarnings("ignore:Object at:zarr.errors.ZarrUserWarning")
def test_every_file_of_a_store_counts(store):
    assert verify_store(store) > 5
    files = sorted(p for p in store.rglob("*") if p.is_file())
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        for change in (b"", content[: len(content) // 2], None):
            file.unlink() if change is None else file.write_bytes(change)
            with pytest.raises(SlideError):
                verify_store(store)
        file.write_bytes(content)
    assert verify_store(store) > 5


def test_a_flipped_bit_anywhere_in_the_patches_is_found(store):
    shard = store / "patches/c/0/0/0/0"
    size = shard.stat().st_size
    for place in range(0, size, size // 40):
        _flip(shard, place)
        if verify_fails(store):
            _flip(shard, place)
        else:  # only what no patch lies in: entries of the index that are absent have the index's checksum
            pytest.fail(f"byte {place} of {size}")


def verify_fails(store):
    try:
        verify_store(store)
    except SlideError:
        return True
    return False


def test_changed_coordinates_and_settings_are_found(store):
    attributes = json.loads((store / "zarr.json").read_text())
    attributes["attributes"]["mpp_table"] = 0.3
    (store / "zarr.json").write_text(json.dumps(attributes))
    with pytest.raises(SlideError, match="digest differs"):
        verify_store(store)


def test_the_command_names_bad_and_missing_stores_and_leaves_the_runs_own_summary(command, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("good", "bad", "gone"):
        shutil.copytree(whole, out / f"{name}.zarr")
    (out / "summary.json").write_text("{}")
    (tmp_path / "slides.csv").write_text("slide_id,path\ngood,x.svs\nbad,y.svs\ngone,z.svs\n")  # slides are gone
    run = ["tile-slides", tmp_path / "slides.csv", "--out", out, "--verify"]
    done = command(*run)
    assert done.returncode == 0 and "3 done" in done.stdout, done.stderr
    before = sorted(p.name for p in out.iterdir())
    shutil.rmtree(out / "gone.zarr")
    _flip(out / "bad.zarr/patches/c/0/0/0/0", 1000)
    done = command(*run)
    assert done.returncode == 1 and "--overwrite" in done.stderr and "delete" in done.stderr
    failures = (out / "verify-failures.csv").read_text()
    assert "gone" in failures and "missing" in failures and "bad" in failures and "damaged" in failures
    assert "good" not in failures and (out / "summary.json").read_text() == "{}"
    assert sorted({p.name for p in out.iterdir()} ^ set(before)) == ["gone.zarr", "verify-failures.csv"]
    done = command(*run, "--part", "1/3")
    assert done.returncode == 0 and (out / "verify-summary-1-of-3.json").exists()
    assert command("tile-slides", tmp_path / "slides.csv", "--out", tmp_path / "no", "--verify").returncode == 2
    assert not (tmp_path / "no").exists()
