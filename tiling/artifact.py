"""What every output has in common: it is whole or absent, it has a format and a version, it knows its origin.

An artifact is written as a temporary sibling `.<name>.tmp-…`, closed, flushed to disk and renamed, so a file
with the final name is whole. While it is written, `<name>.lock` is held, so that two jobs on one folder do
not do the same slide. A temporary sibling found while holding the lock was left by a killed job.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tiling.errors import SlideError

HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
_SAMPLE_BYTES = 1 << 20
_PACKAGES = (
    "slidemil",
    "numpy",
    "zarr",
    "h5py",
    "tifffile",
    "openslide-python",
    "torch",
    "torchvision",
    "timm",
)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file` for a folder: every file in it is on disk before the folder has its final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if path.exists():
            old = _temporary(path)
            os.rename(path, old)
            os.rename(temporary, path)
            _remove(old)
        else:
            os.rename(temporary, path)
        _fsync(path.parent)
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


class Locked(Exception):
    """Another live job holds the lock."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` and clear what a killed job left of `path`. Raises `Locked` if a live job holds it.

    A lock is dead when its process is gone (same host) or its heartbeat is older than `DEAD_AFTER_S`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    token = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)})
    _acquire(file, token)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(file, stop), daemon=True)
    beat.start()
    try:
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            _remove(stale)
        yield
    finally:
        stop.set()
        beat.join()
        if _read_or_none(file) == token:
            file.unlink(missing_ok=True)


def _acquire(file: Path, token: str) -> None:
    for _ in range(3):
        temporary = _temporary(file)
        temporary.write_text(token)
        try:
            os.link(temporary, file)  # unlike O_EXCL + write, the lock never exists without its content
            return
        except FileExistsError:
            owner = _read_or_none(file)
            if not _dead(file):
                raise Locked(f"{file} is held by {owner}") from None
            _set_aside(file, owner)
        finally:
            temporary.unlink()
    raise Locked(f"{file} changes hands")


def _set_aside(file: Path, owner: str | None) -> None:
    """Remove the lock of a dead `owner`; of two jobs that try, one succeeds, and neither takes a fresh lock away."""
    aside = _temporary(file)
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return
    if _read_or_none(aside) != owner:  # another job took over in the meantime: give its lock back
        with suppress(FileExistsError):
            os.link(aside, file)
    aside.unlink()


def _read_or_none(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _dead(file: Path) -> bool:
    try:
        owner = json.loads(file.read_text())
        age_s = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return True
    except ValueError:
        return True
    gone = owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner['pid']}").exists()
    return gone or age_s > DEAD_AFTER_S


def _heartbeat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(FileNotFoundError):
            os.utime(file)


def check_format(attributes: Mapping[str, Any], name: str, version: int, path: Path) -> None:
    """Raise SlideError unless `attributes` say format `name` in exactly this `version`."""
    found, found_version = attributes.get("format"), attributes.get("version")
    if found != name:
        raise SlideError(f"{path}: format is {found!r}, expected {name!r}; is this the right folder?")
    if found_version != version:
        raise SlideError(
            f"{path}: {name} version {found_version}, this program reads version {version}; "
            "make it again with --overwrite, or read it with the program version that wrote it"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances, one line a key: `patch_px: found 512, wanted 256`."""
    keys = sorted(set(found) | set(wanted))
    return [f"{k}: found {found.get(k)!r}, wanted {wanted.get(k)!r}" for k in keys if found.get(k) != wanted.get(k)]


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raise SlideError naming what differs between an existing output's provenance and the wanted one."""
    lines = differences(found, wanted)
    if lines:
        raise SlideError(
            f"{path} exists and was made differently ({'; '.join(lines)}); "
            "choose another --out, or replace it with --overwrite"
        )


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide about the numbers, as far as they are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def digest(value: Any) -> str:
    """sha256 of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def slide_fingerprint(path: Path) -> str:
    """sha256 over size and up to 18 MiB of a slide's bytes, evenly spread: quick on a 4 GB file.

    A slide of several files (a DICOM folder, an MRXS with its folder) counts all of them by name.
    """
    files = [path] if path.is_file() else []
    companion = path if path.is_dir() else path.with_suffix("")
    if path.is_dir() or (path.suffix.lower() == ".mrxs" and companion.is_dir()):
        files += sorted(f for f in companion.iterdir() if f.is_file())
    sha = hashlib.sha256()
    samples = max(1, 18 // len(files)) if files else 0
    for file in files:
        size = file.stat().st_size
        sha.update(f"{file.name if len(files) > 1 else ''}:{size};".encode())
        with file.open("rb") as stream:
            for i in range(samples):
                stream.seek(i * max(0, size - _SAMPLE_BYTES) // max(1, samples - 1))
                sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()
