"""Fixtures: the real slides, where they are, and a small phantom slide for everything else."""

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from multiprocessing import forkserver
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and small matrices gain nothing from threads

import pytest
from object_server import ObjectServer, leading_to, serving_objects
from real_data import DATA

from tiling.phantom.phantom import PhantomSpec, write_phantom

ROOT = Path(__file__).parents[1]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes, pages and time limits."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure() -> None:
    """What tests load stays, and is searched for garbage less often."""
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one of them when all else is done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Nor is what is there by now."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def workers_of_all_kinds() -> Iterator[None]:
    """The one server that this process forks its workers from loads for all tests, whichever asks for it first."""
    given = forkserver.set_forkserver_preload
    with pytest.MonkeyPatch.context() as patch:
        more = ["tiling.all_slides", "mil.maps.export"]
        patch.setattr(forkserver, "set_forkserver_preload", lambda modules: given([*modules, *more]))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Files need not outlive a power cut here; only what runs in a process of its own waits for its disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real slides. Without it the test is skipped, or fails where SLIDE_MIL_REQUIRE_DATA is set."""
    if not DATA.is_dir():
        message = f"no real slides at {DATA}; set SLIDE_MIL_DATA to their folder"
        pytest.fail(message) if os.environ.get("SLIDE_MIL_REQUIRE_DATA") else pytest.skip(message)
    return DATA


@pytest.fixture(scope="session")
def phantom_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tumour phantom of 4,000 × 3,008 px at 0.25 µm/px, as SVS."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.svs"
    write_phantom(PhantomSpec(width_px=4000, height_px=3008, seed=3, tumour=True, lesion_fraction=0.05), path)
    return path


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    with serving_objects() as server:
        yield server


@pytest.fixture
def objects(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObjectServer]:
    """A server of the S3 protocol, with a place of its own for each test: `objects.place` is its address.

    A test can ask for an address of another kind: `parametrize("objects", ["s3", "gs"], indirect=True)`.
    """
    object_server.begin(f"{tmp_path.name} of a test", getattr(request, "param", "s3"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with leading_to(object_server):
        yield object_server


@pytest.fixture(scope="session")
def command():
    """Call a console script in this process: command("tile-slides", …) -> CompletedProcess with text."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        [script] = entry_points(group="console_scripts", name=name)
        given, out, err = [name, *map(str, arguments)], io.StringIO(), io.StringIO()
        before = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", given)
            with pytest.raises(SystemExit) as ended:
                script.load()()
        signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(given, ended.value.code or 0, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def process():
    """Run a console script of this installation in a process of its own, else as `command` does."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / name
        return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, timeout=280)

    return run
