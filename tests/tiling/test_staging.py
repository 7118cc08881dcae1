"""Slides that lie elsewhere are tiled from copies: the same stores, made ahead in bounded room, nothing left behind."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from web_server import serving

from tiling import tile
from tiling.config import TilingConfig
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.outcomes import Outcome
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow, load_table
from tiling.slides import remote
from tiling.slides.urls import shown, without_secrets
from tiling.staging import Stage
from tiling.store.patches import PatchStore

SETTINGS = {"mpp": 1.0, "patch_px": 128, "workers": 1}
SECRET = "X-Amz-Signature=0123456789abcdef"


@pytest.fixture(scope="module")
def local(slides, tmp_path_factory) -> dict[str, bytes]:
    """The stores that tiling these files themselves makes."""
    out = tmp_path_factory.mktemp("local")
    assert tile(slides, out, **SETTINGS).counts == {"done": 3}
    return stores(out)


@pytest.fixture
def web(slides):
    pytest.importorskip("aiohttp", reason="https needs the extra `http`")
    with serving(slides) as server:
        yield server


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.02))


@pytest.fixture
def memory(slides):
    """The slides in fsspec's memory:// as m/a.svs and so on."""
    fs = fsspec.filesystem("memory")
    for file in slides.iterdir():
        fs.pipe(f"/m/{file.name}", file.read_bytes())
    yield fs
    fs.rm("/m", recursive=True)


def stores(out: Path) -> dict[str, bytes]:
    """Every file of every store, the version of a remote slide left out."""
    files = (f for store in sorted(out.glob("*.zarr")) for f in store.rglob("*") if f.is_file())
    return {str(file.relative_to(out)): _without_version(file) for file in files}


def _without_version(file: Path) -> bytes:
    if file.name != "zarr.json":
        return file.read_bytes()
    said = json.loads(file.read_bytes())
    said["attributes"].pop("remote_version", None)
    return json.dumps(said).encode()


def table(path: Path, *places: str) -> Path:
    path.write_text("path\n" + "\n".join(places) + "\n")
    return path


def left_in(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*")]


def test_copies_give_the_stores_that_the_files_give(local, memory, tmp_path):
    places = [f"memory://m/{name}.svs" for name in "abc"]
    outcomes = tile(table(tmp_path / "t.csv", *places), tmp_path / "out", stage=str(tmp_path / "fast"), **SETTINGS)
    assert outcomes.counts == {"done": 3} and stores(tmp_path / "out") == local
    assert left_in(tmp_path / "fast") == []
    assert PatchStore(tmp_path / "out/a.zarr").info.remote_version


def test_what_is_finished_is_not_copied_again_unless_it_has_changed(memory, tmp_path, monkeypatch):
    source = table(tmp_path / "t.csv", "memory://m/a.svs", "memory://m/b.svs")
    stage = {"stage": str(tmp_path / "fast"), **SETTINGS}
    assert tile(source, tmp_path / "out", **stage).counts == {"done": 2}
    copied = []
    monkeypatch.setattr("tiling.staging.copy_slide", spy(remote.copy_slide, copied))
    assert tile(source, tmp_path / "out", **stage).counts == {"skipped": 2} and copied == []
    memory.pipe("/m/a.svs", memory.cat("/m/a.svs"))  # the same bytes, written later
    assert tile(source, tmp_path / "out", **stage).counts == {"skipped": 2} and copied == ["a.svs"]
    memory.pipe("/m/b.svs", memory.cat("/m/c.svs"))
    [failed] = tile(source, tmp_path / "out", **stage).failed
    assert failed.slide_id == "b" and "slide file: found" in failed.reason


def test_a_store_made_from_the_file_itself_is_known_by_its_content(slides, memory, tmp_path):
    assert tile(slides / "a.svs", tmp_path / "out", **SETTINGS).counts == {"done": 1}
    source = table(tmp_path / "t.csv", "memory://m/a.svs")
    assert tile(source, tmp_path / "out", stage=str(tmp_path / "fast"), **SETTINGS).counts == {"skipped": 1}


def spy(copy, copied: list[str]):
    def spied(place, slide, folder, wait):
        copied.append(slide.name)
        return copy(place, slide, folder, wait)

    return spied


def test_the_next_slide_is_copied_while_the_present_one_is_tiled(memory, tmp_path):
    """Work on each slide but the last ends only when the copy of the next is there."""
    rows = [SlideRow(name, url=f"memory://m/{name}.svs") for name in "abc"]
    stage = tmp_path / "fast"
    ahead = Stage(TilingConfig(stage=str(stage)), tmp_path / "out", workers=1)
    work = functools.partial(end_when_next_is_there, stage=stage)
    outcomes = run_slides(rows, work, tmp_path / "out", Execution(workers=1, ahead=ahead))
    assert outcomes.counts == {"done": 3} and [o.slide_id for o in outcomes] == list("abc")


def end_when_next_is_there(row: SlideRow, stage: Path) -> Outcome:
    assert row.path is not None and row.path.stat().st_size > 10_000
    following = chr(ord(row.slide_id) + 1)
    end = time.monotonic() + 60
    while row.slide_id != "c" and not any(stage.rglob(f"{following}.svs")):
        if time.monotonic() > end:
            return Outcome(row.slide_id, "failed", "the next slide was not copied meanwhile")
        time.sleep(0.01)
    return Outcome(row.slide_id, "done")


def test_copies_never_take_more_room_than_is_given(slides, memory, tmp_path, monkeypatch):
    """Room for one slide and a half: the second is copied when the first is gone."""
    sizes = [file.stat().st_size for file in slides.iterdir()]
    there = []

    def look(place, slide, folder, wait):
        copy = remote.copy_slide(place, slide, folder, wait)
        there.append(sum(file.stat().st_size for file in (tmp_path / "fast").rglob("*.svs")))
        return copy

    monkeypatch.setattr("tiling.staging.copy_slide", look)
    source = table(tmp_path / "t.csv", *(f"memory://m/{name}.svs" for name in "abc"))
    most = 1.5 * max(sizes)
    given = {"stage": str(tmp_path / "fast"), "stage_gb": most / 1e9, **SETTINGS, "workers": 2}
    assert tile(source, tmp_path / "out", **given).counts == {"done": 3}
    assert len(there) == 3 and max(there) <= most
    [failed, *_] = tile(source, tmp_path / "small", **{**given, "stage_gb": min(sizes) / 2e9}).failed
    assert "--stage-gb allows" in failed.reason


def test_slow_folders_are_staged_too_with_what_belongs_to_a_slide(local, slides, write_mrxs, data, tmp_path):
    folder, fast = tmp_path / "slides", tmp_path / "fast"
    shutil.copytree(slides, folder)
    write_mrxs(folder / "m.mrxs", np.full((512, 512, 3), (200, 120, 160), np.uint8))
    shutil.copytree(data / "slides/dicom_cmu1", folder / "series")
    given = {**SETTINGS, "tissue": "all"}
    assert tile(folder, tmp_path / "out", stage=str(fast), **given).counts == {"done": 5}
    assert tile(folder, tmp_path / "plain", **given).counts == {"done": 5}
    assert stores(tmp_path / "out") == stores(tmp_path / "plain")
    assert left_in(fast) == [] and (folder / "m" / "Data0000.dat").is_file()


def test_an_ome_zarr_folder_is_copied_as_a_whole(tmp_path, slides):
    fs = fsspec.filesystem("memory")
    fs.pipe({"/z/s.zarr/zarr.json": b"{}", "/z/s.zarr/0/c/0": b"chunk"})
    slide = remote.find_slide("memory://z/s.zarr", time.sleep)
    copy = remote.copy_slide("memory://z/s.zarr", slide, tmp_path / "copy", time.sleep)
    assert copy == tmp_path / "copy/s.zarr" and (copy / "0/c/0").read_bytes() == b"chunk"
    fs.rm("/z", recursive=True)


@pytest.mark.parametrize("name", ["x.dcm", "x.vms"])
def test_one_of_several_files_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"part")
    with pytest.raises(SlideError, match="cannot be copied"):
        remote.find_slide(tmp_path / name, time.sleep)


def test_what_cannot_be_asked_for_is_refused_before_anything_starts(tmp_path, monkeypatch):
    source = table(tmp_path / "t.csv", f"https://host/ward/a.svs?{SECRET}")
    with pytest.raises(RequestError, match=r"1 of 1 slides are URLs.*--stage DIR"):
        tile(source, tmp_path / "out")
    with pytest.raises(RequestError, match="tile-slides alone reads") as refused:
        load_table(source, needs_path=True)
    assert SECRET not in str(refused.value)
    with pytest.raises(RequestError, match="gopher:// URLs are not read"):
        tile(table(tmp_path / "u.csv", "gopher://host/a.svs"), tmp_path / "out", stage=str(tmp_path / "fast"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    fsspec.registry._registry.pop("s3", None) if hasattr(fsspec.registry, "_registry") else None
    with pytest.raises(RequestError, match=r"slidemil\[s3\]"):
        tile(table(tmp_path / "v.csv", "s3://bucket/a.svs"), tmp_path / "out", stage=str(tmp_path / "fast"))


def test_ids_and_what_is_shown_have_no_query(tmp_path):
    source = table(tmp_path / "t.csv", f"https://me:pw@host/a%20b/c.d.svs?{SECRET}", "s3://bucket/e.svs", "f.svs")
    rows = load_table(source, needs_path=False)
    assert [row.slide_id for row in rows] == ["c.d", "e", "f"]
    assert shown(rows[0].url) == "https://host/a%20b/c.d.svs"
    assert SECRET not in repr(rows) and "pw" not in repr(rows)
    assert without_secrets(f"403, url='{rows[0].url}'!") == "403, url='https://host/a%20b/c.d.svs'!"
    assert without_secrets(f"bad {SECRET}", rows[0].url) == "bad …"


def test_faults_that_pass_are_waited_out(web, local, tmp_path, short_waits):
    web.faults = {"a.svs": ["cut"], "b.svs": [503, 503]}
    source = table(tmp_path / "t.csv", *(web.url(f"{name}.svs") for name in "abc"))
    assert tile(source, tmp_path / "out", stage=str(tmp_path / "fast"), **SETTINGS).counts == {"done": 3}
    assert stores(tmp_path / "out") == local


def test_faults_that_stay_fail_their_slide_alone_and_tell_no_secret(web, tmp_path, short_waits, capfd):
    web.faults = {"a.svs": [403] * 9, "b.svs": ["cut"] * 9}
    places = [web.url(f"{name}.svs", SECRET) for name in ("a", "b", "gone", "c")]
    source, out = table(tmp_path / "t.csv", *places), tmp_path / "out"
    outcomes = tile(source, out, stage=str(tmp_path / "fast"), **SETTINGS)
    reasons = {outcome.slide_id: outcome.reason for outcome in outcomes.failed}
    assert outcomes.counts == {"done": 1, "failed": 3}
    assert "(403)" in reasons["a"] and "expired" in reasons["a"] and web.gets("a.svs") < 3
    assert "also after 2 more tries" in reasons["b"]
    assert "nothing at this address (404)" in reasons["gone"]
    assert left_in(tmp_path / "fast") == []
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    said = capfd.readouterr()
    secret = SECRET.partition("=")[2]
    assert secret.encode() not in written and secret not in said.out + said.err + "".join(reasons.values())
    assert "a.svs: the store refuses it" in (out / "failures.csv").read_text()
    assert "127.0.0.1" not in (out / "failures.csv").read_text()


def test_a_slide_that_changes_while_it_is_copied_fails(web, tmp_path, short_waits):
    slide = remote.find_slide(web.url("a.svs"), time.sleep)
    web.etags["a.svs"] = '"another"'
    with pytest.raises(SlideError, match="changed while it was copied"):
        remote.copy_slide(web.url("a.svs"), slide, tmp_path / "copy", time.sleep)


@pytest.mark.parametrize(
    ("says", "signed", "copied_again"),
    [("ETag", True, []), ("Last-Modified", False, []), ("nothing", False, ["s.svs"])],
)
def test_a_change_is_seen_whatever_a_web_server_says_of_it(slides, tmp_path, monkeypatch, says, signed, copied_again):
    pytest.importorskip("aiohttp", reason="https needs the extra `http`")
    file = tmp_path / "web/s.svs"
    file.parent.mkdir()
    shutil.copy(slides / "a.svs", file)
    os.utime(file, (1e9, 1e9))
    copied: list[str] = []
    monkeypatch.setattr("tiling.staging.copy_slide", spy(remote.copy_slide, copied))
    with serving(file.parent) as web:
        web.says, web.signed = says, signed
        tile_it = functools.partial(
            tile, table(tmp_path / "t.csv", web.url("s.svs", SECRET)), tmp_path / "out", stage=str(tmp_path / "fast")
        )
        assert tile_it(**SETTINGS).counts == {"done": 1} and copied == ["s.svs"]
        copied.clear()
        assert tile_it(**SETTINGS).counts == {"skipped": 1} and copied == copied_again
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
        [failed] = tile_it(**SETTINGS).failed
    assert "slide file: found" in failed.reason


def test_each_wait_is_longer_than_the_last(tmp_path):
    waits = []
    with pytest.raises(SlideError, match="also after 5 more tries"):
        remote._tried(tmp_path, lambda: (_ for _ in ()).throw(ConnectionResetError("cut")), waits.append)
    assert waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_killed_in_the_midst_of_a_copy_is_resumed(web, local, tmp_path, sent):
    web.faults = {"b.svs": ["hold"]}
    source = table(tmp_path / "t.csv", *(web.url(f"{name}.svs", SECRET) for name in "abc"))
    fast, out = tmp_path / "fast", tmp_path / "out"
    command = [Path(sys.executable).parent / "tile-slides", source, "--out", out, "--stage", fast]
    command += ["--mpp", "1.0", "--patch-px", "128", "--workers", "1"]
    running = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert web.held.wait(60)
    while not (out / "a.zarr").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(sent)
    code = running.wait(20)
    assert code == (-9 if sent == signal.SIGKILL else 130)
    assert bool(left_in(fast)) == (sent == signal.SIGKILL) and not (out / "b.zarr").exists()
    web.release.set()
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "a: skipped" in again.stderr and web.gets("a.svs") == 1
    assert stores(out) == local and left_in(fast) == []
    assert SECRET not in again.stderr + again.stdout


def test_a_worker_of_dask_copies_by_itself(slides, local, tmp_path):
    distributed = pytest.importorskip("distributed")
    places, fast = [f"file://{slides}/{name}.svs" for name in "abc"], tmp_path / "fast"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        given = {"stage": str(fast), "scheduler": cluster.scheduler_address, **SETTINGS}
        assert tile(table(tmp_path / "t.csv", *places), tmp_path / "out", **given).counts == {"done": 3}
        source = table(tmp_path / "t.csv", f"file://{slides}/gone.svs")
        [failed] = tile(source, tmp_path / "other", **given).failed
    assert "gone.svs: there is no such file" in failed.reason
    assert stores(tmp_path / "out") == local and left_in(fast) == []


def test_a_real_server_of_s3(slides, local, tmp_path, monkeypatch):
    """Runs where moto and s3fs are installed, which no other test needs."""
    for module in ("s3fs", "boto3"):
        pytest.importorskip(module)
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        client = sys.modules["boto3"].client("s3")
        client.create_bucket(Bucket="slides")
        for name in "abc":
            client.put_object(Bucket="slides", Key=f"ward/{name}.svs", Body=(slides / f"{name}.svs").read_bytes())
        source = table(tmp_path / "t.csv", *(f"s3://slides/ward/{name}.svs" for name in ("a", "b", "c", "gone")))
        outcomes = tile(source, tmp_path / "out", stage=str(tmp_path / "fast"), **SETTINGS)
        assert outcomes.counts == {"done": 3, "failed": 1} and "no such file" in outcomes.failed[0].reason
        assert stores(tmp_path / "out") == local
        assert tile(source, tmp_path / "out", stage=str(tmp_path / "fast"), **SETTINGS).counts["skipped"] == 3
    finally:
        server.stop()
