"""Put outputs into an object store, kill and resume it, read slides from it, and compare all with local folders.

    python tests/stress/object_store.py [ADDRESS [SLIDES_ADDRESS]]

ADDRESS is a place of a bucket or container that is there, such as `az://container/place`; credentials are those of the
environment. Without one, a server on loopback is asked as `s3://` and in the words of Google's XML API as `gs://`.
SLIDES_ADDRESS, where three slides are put first, is read by fsspec (`tile-slides --stage`). What is put is removed.

Azure's own emulator, from npm: `azurite-blob --inMemoryPersistence --skipApiVersionCheck`, then a container made by any
client, and AZURE_STORAGE_USE_EMULATOR=true, AZURE_STORAGE_CONNECTION_STRING=UseDevelopmentStorage=true.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from kill_tiling import require, stores
from object_server import BUCKET, leading_to, serving_objects

from features import extract
from tiling import tile
from tiling.objects.copies import copy_objects
from tiling.objects.folder import ABSENT, ObjectFolder, Taken, folder_at
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.store.objects import ROOT, fetch_store, find_store, put_store

SETTINGS = {"mpp": 1.0, "patch_px": 128, "workers": 2}
FLAGS = ("--mpp", "1.0", "--patch-px", "128", "--workers", "2")
ENCODER = {"encoder": "mobilenet-v3-small", "weights": "random", "device": "cpu"}
NAMES = ("a", "b", "c")
KILLS, ROUNDS = 6, 8


def main(addresses: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "slides").mkdir()
        for seed, slide in enumerate(NAMES):
            spec = PhantomSpec(width_px=2048 + 512 * seed, height_px=2048, seed=seed, tumour=False)
            write_phantom(spec, here / f"slides/{slide}.svs")
        require(tile(here / "slides", here / "patches", **SETTINGS).counts == {"done": 3}, "no local stores")
        require(extract(here / "patches", here / "features", **ENCODER).counts == {"done": 3}, "no local features")
        if addresses:
            check(here, *addresses)
            return
        with serving_objects() as server, leading_to(server):
            for kind in ("s3", "gs"):
                check(here, f"{kind}://{BUCKET}/place")


def check(here: Path, address: str, slides_address: str = "") -> None:
    place = f"{address}/{secrets.token_hex(4)}"
    folder = folder_at(place)
    assert isinstance(folder, ObjectFolder)
    try:
        print(address)
        folder.require_writable()
        print("  conditional puts are heeded")
        race(here, folder.below("race"))
        killed(here, folder.below("patches"))
        features(here, folder)
        if slides_address:
            staged(here, f"{slides_address}/{secrets.token_hex(4)}")
    finally:
        folder.delete(folder.files())
    require(not folder.files(), "something is left")


def race(here: Path, folder: ObjectFolder) -> None:
    """Two writers put one slide at once: one wins, and nothing is mixed."""
    (here / "other").mkdir(exist_ok=True)
    other = here / "other/a.zarr"
    if not other.exists():
        other.symlink_to(here / "patches/b.zarr")
    both = (here / "patches/a.zarr", other)
    for number in range(ROUNDS):
        before = find_store(folder, "a")
        version = before.version if before else ABSENT
        with ThreadPoolExecutor(2) as pool:
            puts = [pool.submit(put_store, folder, store, version) for store in both]
        lost = [isinstance(put.exception(), Taken) for put in puts]
        require(
            sum(lost) == 1 and sum(put.exception() is None for put in puts) == 1, f"{[p.exception() for p in puts]}"
        )
        with tempfile.TemporaryDirectory(dir=here) as name:
            found = files(fetch_store(folder, "a", Path(name) / str(number)))
        require(found == files(both[lost.index(False)].resolve()), "the winner's store is not whole")
    folder.delete(folder.files())
    print(f"  {ROUNDS} races of two writers: one won each, its store whole")


def killed(here: Path, folder: ObjectFolder) -> None:
    """Runs that are killed at random are resumed, until one ends by itself."""
    rng = random.Random(0)
    command = [Path(sys.executable).parent / "tile-slides", here / "slides", "--out", folder, *FLAGS]
    kills = 0
    while True:
        running = subprocess.Popen(list(map(str, command)), stdout=-3, stderr=-3, start_new_session=True)
        if kills < KILLS:
            _kill(running, 1 + 4 * rng.random())
        code = running.wait(300)
        for slide in NAMES:
            if (found := find_store(folder, slide)) is not None:
                with tempfile.TemporaryDirectory(dir=here) as name:
                    same = files(fetch_store(folder, slide, Path(name))) == files(here / f"patches/{slide}.zarr")
                require(same, f"{slide}: {found.token} is not the local run's store")
        if code == 0:
            break
        require(code == -signal.SIGKILL, f"tile-slides ended with {code}")
        kills += 1
    require(all(find_store(folder, slide) for slide in NAMES), "a slide is lost")
    left = [name for name in folder.files() if ".lock" in name or ".tried" in name]
    doubled = [s for s in NAMES if len({key.split("/")[1] for key in folder.files(f"{s}.zarr")}) != 2]
    require(not left and not doubled, f"left: {left}, doubled: {doubled}")
    require(tile(here / "slides", str(folder), **SETTINGS).counts == {"skipped": 3}, "finished slides are not seen")
    print(f"  {kills} kills of tile-slides: all slides there once, with the bytes of a local run; then all skipped")


def _kill(running: subprocess.Popen[bytes], after_s: float) -> None:
    """The process group, unless it has ended by then."""
    try:
        running.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)


def features(here: Path, folder: ObjectFolder) -> None:
    patches, out = str(folder.below("patches")), folder.below("features")
    for ends in ("done", "skipped"):
        found = extract(patches, str(out), **ENCODER).counts
        require(found == {ends: 3}, f"extract-features ended with {found}")
    copied = [copy_objects(out, lambda name: name.endswith(".h5"), here / folder.url.replace("/", "-")) for _ in "ab"]
    require(copied == [3, 0], f"features are copied again: {copied}")
    for slide in NAMES:
        read = out.read(f"{slide}.h5")
        require(read is not None and read[0] == (here / f"features/{slide}.h5").read_bytes(), f"{slide}.h5 differs")
    print("  features: the bytes of a local run; then all skipped, and copied for training once")


def staged(here: Path, address: str) -> None:
    files_there, root = fsspec.core.url_to_fs(address)
    try:
        for slide in NAMES:
            files_there.pipe_file(f"{root}/{slide}.svs", (here / f"slides/{slide}.svs").read_bytes())
        table = pd.DataFrame({"slide_id": NAMES, "path": [f"{address}/{slide}.svs" for slide in NAMES]})
        for ends in ("done", "skipped"):
            found = tile(table, here / "staged", stage=str(here / "stage"), **SETTINGS).counts
            require(found == {ends: 3}, f"--stage ended with {found}")
        found, wanted = stores(here / "staged"), stores(here / "patches")
        differing = [key for key in wanted if not key.endswith(f".zarr/{ROOT}") and found.get(key) != wanted[key]]
        require(not differing, f"staged slides gave other patches: {differing}")  # the root names the object's version
    finally:
        files_there.rm(root, recursive=True)
    print("  slides read by fsspec with --stage: the patches of local files; then all skipped")


def files(store: Path) -> dict[str, bytes]:
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in store.rglob("*") if file.is_file()}


if __name__ == "__main__":
    main(sys.argv[1:])
