"""Patch stores in an object store: the same files as on disk, whole or not at all, one writer's alone."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import zarr

from tiling import elsewhere, tile
from tiling.config import TilingConfig
from tiling.elsewhere import tile_into
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import Locked
from tiling.manifest import SlideRow
from tiling.objects import folder as module
from tiling.objects.folder import Found, Taken, folder_at
from tiling.pipeline import tile_slide
from tiling.store.objects import fetch_store, find_store, put_store
from tiling.store.patches import PatchStore
from tiling.verify import verify_store

SETTINGS = {"mpp": 1.0, "patch_px": 128, "workers": 1}


@pytest.fixture(scope="module")
def local(slides, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("local")
    assert tile(slides, out, **SETTINGS).counts == {"done": 3}
    return out


@pytest.fixture
def folder(objects, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    return folder_at(objects.place)


def files_of(store: Path) -> dict[str, bytes]:
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def require_whole(folder, local, tmp_path, names="abc"):
    """The stores are those of a local run, and nothing else lies beside them."""
    for name in names:
        found = find_store(folder, name)
        store = fetch_store(folder, name, tmp_path / "fetched")
        assert files_of(store) == files_of(local / f"{name}.zarr") and verify_store(store) == len(found.head)
        assert {key.split("/")[1] for key in folder.files(f"{name}.zarr")} == {found.token, "zarr.json"}
    assert not [key for key in folder.files() if "lock" in key or "tried" in key]


def test_stores_pictures_and_page_are_those_of_a_local_run(folder, objects, slides, local, tmp_path):
    objects.faults = {("PUT", "0/0/0/0"): [503, "cut", "lost"], ("PUT", "zarr/zarr.json"): ["lost"]}
    done = tile(slides, objects.place, **SETTINGS)
    assert done.counts == {"done": 3} and done.out == objects.place, done.failed
    require_whole(folder, local, tmp_path)
    for name in ("qc/a.json", "qc/a.jpg", "qc.html"):
        assert folder.read(name)[0] == (local / name).read_bytes()
    assert json.loads(folder.read("summary.json")[0])["counts"] == {"done": 3}
    where = zarr.storage.ObjectStore(module._opened(objects.place)[1], read_only=True)
    group = zarr.open_group(where, path="a.zarr", mode="r")  # as others open it
    assert group[f"{group.attrs['stored_in']}/coords_l0"].shape == (group.attrs["patches"], 2)
    for key in folder.files("a.zarr"):  # a copy of all of it is a store, too
        file = tmp_path / "synced" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(folder.read(key)[0])
    assert verify_store(tmp_path / "synced/a.zarr") == group.attrs["patches"]
    assert PatchStore(tmp_path / "synced/a.zarr").digest == PatchStore(local / "a.zarr").digest
    objects.requests.clear()
    assert tile(slides, objects.place, **SETTINGS).counts == {"skipped": 3}
    read = [key for method, key in objects.requests if method == "GET" and ".zarr" in key]
    assert {key.partition("/")[2] for key in read} == {f"{name}.zarr/zarr.json" for name in "abc"} and len(read) == 3
    assert objects.count("GET", "/bucket") <= 4  # listings, one of what stores were tried with, one of facts
    assert not list(tmp_path.glob("slidemil-*/*"))


def test_other_settings_are_refused_and_replaced_at_one_stroke(folder, objects, slides, local, tmp_path):
    row = SlideRow("a", path=slides / "a.svs")
    tile_into(row, TilingConfig(**SETTINGS), folder, tile_slide)
    other = TilingConfig(**{**SETTINGS, "mpp": 2.0})
    with pytest.raises(SlideError, match=r"a.zarr exists and was made differently \(mpp: found 1.0, wanted 2.0\)"):
        tile_into(row, other, folder, tile_slide)
    before = find_store(folder, "a")
    objects.faults = {("PUT", "a.zarr/zarr.json"): [403]}
    with pytest.raises(RequestError, match="403"):
        tile_into(row, TilingConfig(**{**SETTINGS, "mpp": 2.0, "overwrite": True}), folder, tile_slide)
    assert find_store(folder, "a") == before
    require_whole(folder, local, tmp_path, "a")
    tile_into(row, TilingConfig(**{**SETTINGS, "mpp": 2.0, "overwrite": True}), folder, tile_slide)
    assert find_store(folder, "a").head.info.mpp == 2.0
    assert verify_store(fetch_store(folder, "a", tmp_path / "other")) == len(find_store(folder, "a").head)


def test_of_two_that_put_one_slide_at_once_one_wins_and_nothing_is_mixed(folder, local, tmp_path):
    other = tmp_path / "b" / "a.zarr"  # another store of the same name
    other.parent.mkdir()
    other.symlink_to(local / "b.zarr")
    both = [local / "a.zarr", other]
    for _ in range(4):
        version = found.version if (found := find_store(folder, "a")) else {}
        with ThreadPoolExecutor(2) as pool:
            puts = [pool.submit(put_store, folder, store, version) for store in both]
        faults = [put.exception() for put in puts]
        [winner] = [store for store, fault in zip(both, faults, strict=True) if fault is None]
        assert sum(isinstance(fault, Taken) for fault in faults) == 1
        stored = fetch_store(folder, "a", tmp_path / f"{time.monotonic_ns()}")
        assert files_of(stored) == files_of(winner.resolve()) and verify_store(stored)
        token = find_store(folder, "a").token
        assert {key.split("/")[1] for key in folder.files("a.zarr")} == {token, "zarr.json"}


def test_a_job_that_lost_its_lock_does_not_replace_what_another_made(folder, slides, local, tmp_path, monkeypatch):
    row, config = SlideRow("a", path=slides / "a.svs"), TilingConfig(**SETTINGS)

    def tile_slowly(row, config, out):
        outcome = tile_slide(row, config, out)
        with monkeypatch.context() as patch:  # the others took it for dead
            patch.setattr(elsewhere, "object_lock", lambda folder, name: nullcontext())
            tile_into(row, config, folder, tile_slide)
        return outcome

    with pytest.raises(Locked, match="another job has put it meanwhile"):
        tile_into(row, config, folder, tile_slowly)
    require_whole(folder, local, tmp_path, "a")


def test_a_run_killed_in_the_midst_of_an_upload_is_resumed(folder, objects, slides, local, tmp_path):
    objects.faults = {("PUT", "a.zarr/zarr.json"): ["hold"]}
    command = [Path(sys.executable).parent / "tile-slides", slides, "--out", objects.place]
    command += ["--mpp", "1.0", "--patch-px", "128", "--workers", "1"]
    running = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert objects.held.wait(60)
    running.send_signal(signal.SIGKILL)
    running.wait(20)
    while running.stderr.read(1):  # its workers hold the other end until they are gone
        pass
    left = [key.partition(".zarr/")[2] for key in folder.files() if "a.zarr/" in key]
    assert left and "zarr.json" not in left and find_store(folder, "a") is None
    objects.faults.clear()
    done = tile(slides, objects.place, **SETTINGS)
    assert done.counts["done"] >= 1 and not done.failed, done
    objects.release.set()
    require_whole(folder, local, tmp_path)
    assert not [path for path in tmp_path.glob("slidemil-*/.*")]


def test_what_is_not_whole_or_no_store_is_told(folder, objects, local, tmp_path):
    with pytest.raises(SlideError, match=r"a.zarr: no patch store there; make it with tile-slides"):
        fetch_store(folder, "a", tmp_path)
    folder.put("a.zarr/zarr.json", (local / "a.zarr/zarr.json").read_bytes())  # copied there by hand
    with pytest.raises(SlideError, match="was copied there from a folder"):
        find_store(folder, "a")
    with pytest.raises(RequestError, match="holds no user, password or query"):
        tile(local, "s3://key:SECRET@bucket/out", **SETTINGS)


@pytest.mark.parametrize(
    ("page_s", "facts_s", "changed", "drawn"),
    [(9.0, 8.0, False, False), (9.0, 8.0, True, True), (9.0, 9.0, False, True), (8.0, 9.0, False, True)],
)
def test_a_page_that_a_killed_job_left_behind_is_drawn_by_the_next(local, tmp_path, page_s, facts_s, changed, drawn):
    """By the store's clock, which tells whole seconds."""
    folder = mock.Mock()
    folder.find.return_value = Found(1, {}, page_s)
    folder.files.return_value = {
        f"qc/{name}.json": Found(1, {}, seconds) for name, seconds in zip("abc", (1, facts_s, 1), strict=True)
    }
    folder.read.side_effect = lambda name: ((local / name).read_bytes(), None)
    elsewhere.draw_page(folder, tmp_path, changed)
    page = tmp_path / "qc.html"
    assert page.exists() == drawn and (not drawn or page.read_bytes() == (local / "qc.html").read_bytes())
