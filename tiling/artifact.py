"""What every output has in common: it is whole or absent, it has a format and a version, it knows its origin.

An artifact is written as a temporary sibling `.<name>.tmp-…`, closed, flushed to disk and renamed, so a file
with the final name is whole. While it is written, `<name>.lock` is held, so that two jobs on one folder do
not do the same slide. A temporary sibling found while holding the lock was left by a killed job.
"""

import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py

from tiling.errors import SlideError
from tiling.workers import alive

HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
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
    if not path.is_dir():
        path.unlink(missing_ok=True)
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.02)  # zarr's threads may still write into it


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
                alive()
            _fsync(Path(folder))
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        _fsync(path.parent)
    finally:
        _remove(temporary)


def _exchange(temporary: Path, path: Path) -> None:
    """Swap two folders at one stroke, so that a kill leaves the old one or the new one, and never none."""
    names = (_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
    try:
        swapped = ctypes.CDLL(None, use_errno=True).renameat2(*names) == 0
    except AttributeError:  # a C library without renameat2
        swapped = False
    if not swapped:  # NFS cannot: for a moment there is none, and a kill then costs making it again
        old = _temporary(path)
        os.rename(path, old)
        os.rename(temporary, path)
        _remove(old)


def no_room(error: BaseException | None) -> OSError | None:
    """The error in the chain of causes that says that the output's disk is full or cannot be written, or None.

    HDF5 hides it in the text of errors of its own.
    """
    while error is not None:
        hidden = re.search(r"errno = (\d+)", str(error))
        code = int(hidden[1]) if hidden else getattr(error, "errno", None)
        if code in _NO_ROOM:
            return OSError(code, os.strerror(code), getattr(error, "filename", None))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def atomic_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill; it becomes `path` when the block ends without an error.

    It is made in memory: HDF5 itself crashes the process when the disk is full.
    """
    name = f"in memory {uuid.uuid4().hex}"  # HDF5 takes two open files of one name for the same
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with atomic_file(path) as temporary:
        temporary.write_bytes(image)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


class Locked(Exception):
    """Another job holds the lock.

    beat: changes while the owner lives and its heartbeat is all that can be seen of it; empty where the owner was
    seen to run.
    """

    def __init__(self, message: str, beat: str = "") -> None:
        super().__init__(message)
        self.beat = beat


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` and clear what a killed job left of `path`. Raises `Locked` if a live job holds it.

    A lock is dead when its process is gone (same machine) or its heartbeat is older than `DEAD_AFTER_S` by the
    clock of the file system, since those of two hosts may differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    token = json.dumps({**_process(os.getpid()), "token": secrets.token_hex(8)})
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(file, stop), daemon=True)
    try:  # a signal may end this process at any line
        _acquire(file, token)
        beat.start()
        _clear(path)
        yield
    except OSError as error:
        if _read_or_none(file) not in (None, token):  # stopped for so long that another job took over
            raise Locked(f"{file} was taken over") from error
        raise
    finally:
        stop.set()
        if _read_or_none(file) == token:
            file.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what killed jobs left half written of `path`, whose lock is held, and of its lock."""
    for pattern in (f".{path.name}.tmp-*", f".{path.name}.lock.new-*"):
        for stale in path.parent.glob(pattern):
            _remove(stale)


def clear_dead(folder: Path) -> None:
    """Remove the locks of killed processes of this machine in `folder`, and half-written folders without a lock."""
    dead = {file.with_suffix("") for file in folder.glob("*.lock") if _runs(_parse(_read_or_none(file))) is False}
    half = {p.with_name(p.name[1:].rpartition(".tmp-")[0]) for p in folder.glob(".*.tmp-*") if p.is_dir()}
    for path in dead | half:
        with suppress(Locked, OSError), lock(path):
            pass


def _acquire(file: Path, token: str) -> None:
    for _ in range(3):
        temporary = file.with_name(f".{file.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_text(token)
            with suppress(FileNotFoundError):  # the lock's owner took it for left behind: again
                now_s = temporary.stat().st_mtime
                os.link(temporary, file)  # unlike O_EXCL + write, the lock never exists without its content
                return
        except FileExistsError:
            owner = _read_or_none(file)
            if owner == token:  # NFS did it and lost the answer
                return
            _require_dead(file, now_s)
            _set_aside(file, owner)
        finally:
            temporary.unlink(missing_ok=True)
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


def _require_dead(file: Path, now_s: float) -> None:
    """Raise Locked where the owner lives. now_s: the file system's clock, from a file written just now."""
    try:
        with file.open() as stream:  # opening makes NFS look at the server's times
            text, beat_s = stream.read(), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return
    owner = _parse(text)
    runs = _runs(owner)
    if not owner or runs is False or now_s - beat_s > DEAD_AFTER_S:
        return
    held = f"{file.name} is held by process {owner.get('pid')} on {owner.get('host')}"
    raise Locked(held, beat="" if runs else f"{text} {beat_s}")


def _parse(text: str | None) -> dict[str, Any]:
    try:
        return dict(json.loads(text or ""))
    except (ValueError, TypeError):
        return {}


def _runs(owner: Mapping[str, Any]) -> bool | None:
    """Whether the owner of a lock runs; None where this process cannot see it, being on another machine."""
    if not owner or any(owner.get(key) != value for key, value in _machine().items()):
        return None
    return bool(owner.get("started") == _started(owner["pid"]))


def _process(pid: int) -> dict[str, Any]:
    return {**_machine(), "pid": pid, "started": _started(pid)}


@functools.cache
def _machine() -> dict[str, str]:
    """What processes must share to see each other by pid; hosts and containers may have one name."""
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": os.readlink("/proc/self/ns/pid"),
    }


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot: a pid is given again, both together are not. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _heartbeat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):  # a file server may be away for a moment
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
    files = slide_files(path)
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


def slide_files(path: Path) -> list[Path]:
    """The files that make a slide: one, or those of a DICOM folder, or an MRXS file and those of its folder."""
    files = [path] if path.is_file() else []
    companion = path if path.is_dir() else path.with_suffix("")
    if path.is_dir() or (path.suffix.lower() == ".mrxs" and companion.is_dir()):
        files += sorted(f for f in companion.iterdir() if f.is_file())
    return files
