"""Output that cannot be written: one failure that stops the run, nothing broken, and the remedy in the message."""

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest

from tiling.jobs.atomic import no_room
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.store.patches import PatchStore
from tiling.verify import verify_store

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_phantom(PhantomSpec(width_px=2000, height_px=1504, seed=0, tumour=False), folder / "s0.svs")
    for number in range(1, 6):
        shutil.copy(folder / "s0.svs", folder / f"s{number}.svs")
    return folder


@pytest.fixture(scope="module")
def whole(slides, tmp_path_factory):
    """The stores of all slides."""
    folder = tmp_path_factory.mktemp("whole")
    assert tile(slides, folder, "--workers", 1).returncode == 0
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes) -> folder on a disk of that size."""
    mounted = []

    def mount(kilobytes, options=""):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{options}", "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small disk can be mounted here (needs root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def run(arguments, limit_bytes=None):
    def limit():
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [str(BIN / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)


@contextmanager
def _file_size(limit_bytes):
    """Of this process; None for no limit."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes or before, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def tile(slides, out, *more, **how):
    return run(["tile-slides", slides, "--out", out, "--patch-px", "128", "--mpp", "0.25", *more], **how)


def left_over(out):
    return [p.name for p in out.iterdir() if p.name.endswith(".lock") or ".tmp-" in p.name]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_failure_and_goes_on_when_there_is_room(slides, whole, small_disk, workers):
    stores = sorted(whole.glob("*.zarr"))
    made = [f for f in whole.rglob("*") if f.is_file()]
    slide_kb = sum(-(-f.stat().st_size // 4096) * 4 for f in made) / 6
    out = small_disk(int(slide_kb * 3.5))  # half a slide's room is left for the summary
    done = tile(slides, out, "--workers", workers)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"stopped: {out} cannot be written: its disk is full" in done.stderr and "make room" in done.stderr
    with (out / "failures.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["failed"] == 1 and sum(summary["counts"].values()) == 6
    assert summary["counts"]["not done"] >= 1 and f"{summary['counts']['not done']} not done" in done.stdout
    for store in out.glob("*.zarr"):
        assert verify_store(store) > 0
    assert not left_over(out)
    subprocess.run(["mount", "-o", "remount,size=100m", out], check=True)
    assert tile(slides, out).returncode == 0
    for store in stores:
        assert PatchStore(out / store.name).digest == PatchStore(store).digest


def test_a_disk_without_room_for_the_summary_is_exit_code_2(slides, small_disk):
    out = small_disk(200)
    with (out / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    done = tile(slides, out)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(out) in done.stderr
    assert {p.name for p in out.iterdir()} == {"ballast"}


def test_a_read_only_disk_is_named(slides, small_disk):
    out = small_disk(200, ",ro")
    done = tile(slides, out)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(out) in done.stderr and "Read-only file system" in done.stderr
    assert len(done.stderr.splitlines()) <= 4


def test_a_limit_on_file_size_is_one_failure(slides, tmp_path):
    done = tile(slides, tmp_path, limit_bytes=300_000)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ulimit -f" in done.stderr and "run the same command again" in done.stderr
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert counts["failed"] == 1 and counts["not done"] == 5
    assert not list(tmp_path.glob("*.zarr")) and not left_over(tmp_path)


def test_extract_features_stops_once_too(whole, small_disk, command, tmp_path):
    def embed(out):
        weights = ["--encoder", "resnet18", "--weights", "random", "--input-px", "64", "--device", "cpu"]
        return command("extract-features", whole, "--out", out, *weights)

    done = embed(tmp_path / "features")
    assert done.returncode == 0, done.stderr
    sizes = [f.stat().st_size for f in (tmp_path / "features").glob("*.h5")]
    full = small_disk(int(sum(sizes) * 0.6 / 1024))
    limited = tmp_path / "limited"
    for out, limit in ((full, None), (limited, min(sizes) // 2)):
        with _file_size(limit):
            done = embed(out)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("stopped: ") == 1 and "cannot be written" in done.stderr
        counts = json.loads((out / "summary.json").read_text())["counts"]
        assert counts["failed"] == 1 and counts["not done"] >= 1 and sum(counts.values()) == 6
        for file in out.glob("*.h5"):
            with h5py.File(file) as h5:
                assert h5["features"][:].shape[1] == 512
        assert not left_over(out)


def test_what_hdf5_says_of_a_full_disk_is_understood():
    text = "Can't decrement id ref count (unable to close file, errno = 28, error message = 'No space left on device')"
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise ValueError("something else") from error
    except ValueError as error:
        assert no_room(error).errno == 28
    assert no_room(OSError(5, "Input/output error")) is None and no_room(ValueError("errno = 5")) is None
    assert os.strerror(28) in str(no_room(OSError(28, "x")))
