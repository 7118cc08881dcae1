"""Files and folders that are whole or absent, also where a job is killed or the disk is full.

They are written as a temporary sibling `.<name>.tmp-…`, closed, flushed to disk and renamed, so what has the final
name is whole. Our own: no library flushes and renames whole folders, nor exchanges an old one for a new one.
"""

import csv
import ctypes
import errno
import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiling.jobs.workers import alive

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_FLUSHED_AT_ONCE = 8  # waiting for the disk file by file took five times as long
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
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
    temporary = temporary_beside(path)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        remove(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file` for a folder: every file in it is on disk before the folder has its final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
            for _ in pool.map(_fsync, (temporary, *temporary.rglob("*"))):
                alive()
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        _fsync(path.parent)
    finally:
        remove(temporary)


def _exchange(temporary: Path, path: Path) -> None:
    """Swap two folders at one stroke, so that a kill leaves the old one or the new one, and never none."""
    if not _swapped(temporary, path):  # NFS cannot: for a moment there is none, and a kill costs making it again
        old = temporary_beside(path)
        os.rename(path, old)
        os.rename(temporary, path)
        remove(old)


def _swapped(one: Path, other: Path) -> bool:
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    try:
        return bool(ctypes.CDLL(None, use_errno=True).renameat2(*names) == 0)
    except AttributeError:  # a C library without renameat2
        return False


def exchanges_folders(folder: Path) -> bool:
    """Whether two folders in it can be swapped at one stroke."""
    pair = [temporary_beside(folder / name) for name in ("one", "other")]
    for each in pair:
        each.mkdir()
    try:
        return _swapped(*pair)
    finally:
        for each in pair:
            each.rmdir()


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


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """rows: the header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
