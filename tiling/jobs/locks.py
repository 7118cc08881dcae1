"""One job at a time does a slide: `<name>.lock` is held while an output is written, with a heartbeat.

A temporary sibling found while holding the lock was left by a killed job. Our own: the locks of libraries are flock,
which many file servers ignore, or files whose dead owner on another machine holds them for ever.
"""

import functools
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tiling.jobs.atomic import remove, temporary_beside

_TEMPORARY = re.compile(r"(\..+\.(?:tmp|lock\.new))-[0-9]+-[0-9a-z]+")
HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
_PATIENCE_S = 60


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
    token = json.dumps({**process(os.getpid()), "token": secrets.token_hex(8)})
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(file, stop), daemon=True)
    try:  # a signal may end this process at any line
        taken_over = _acquire(file, token)
        beat.start()
        clear_left(path, taken_over)
        yield
    except OSError as error:
        if _read_or_none(file) not in (None, token):  # stopped for so long that another job took over
            raise Locked(f"{file} was taken over") from error
        raise
    finally:
        stop.set()
        if _read_or_none(file) == token:
            file.unlink(missing_ok=True)


@contextmanager
def waited_lock(path: Path) -> Iterator[None]:
    """A `lock` for what a job writes at its end; another's is waited for. Raises `Locked` after a minute."""
    with ExitStack() as held:
        for again in range(_PATIENCE_S):
            try:
                held.enter_context(lock(path))
                break
            except Locked:
                if again == _PATIENCE_S - 1:
                    raise
                time.sleep(1)
        yield


def is_held(path: Path) -> bool:
    """Whether a lock of `path` is there, be its owner alive or dead."""
    return path.with_name(f"{path.name}.lock").exists()


def clear_left(path: Path, taken_over: bool = False) -> None:
    """Remove what killed jobs left half written of `path`, whose lock is held, and of that lock.

    What is left by jobs that are killed from now on is there with their lock; so the folder is listed where a lock is
    `taken_over`, and else once in a run: a listing for each of many slides would take hours.
    """
    folder = path.parent.absolute()
    left = _left_in(folder) if taken_over else _left_at_first(folder)
    for stale in [*left.get(f".{path.name}.tmp", ()), *left.get(f".{path.name}.lock.new", ())]:
        remove(folder / stale)


def _left_in(folder: Path) -> dict[str, list[str]]:
    """Names of temporary siblings in a folder, by what they begin with."""
    left = defaultdict(list)
    for name in os.listdir(folder):
        if found := _TEMPORARY.fullmatch(name):
            left[found[1]].append(name)
    return left


_left_at_first = functools.cache(_left_in)


def begin_run() -> None:
    """Folders are looked at again for what killed jobs left in them."""
    _left_at_first.cache_clear()


@contextmanager
def working_folder(parent: str | Path = "") -> Iterator[Path]:
    """Yield a folder of this call's own in `parent`, by default in the system's folder for temporary files.

    It is removed afterwards; those that killed processes left there are removed before.
    """
    parent = Path(parent or Path(tempfile.gettempdir(), f"slidemil-{os.getuid()}")).absolute()
    clear_dead(parent)
    own = parent / f"run-{secrets.token_hex(4)}"
    with lock(own):
        place = temporary_beside(own)
        place.mkdir()
        try:
            yield place
        finally:
            remove(place)


def clear_dead(folder: Path) -> None:
    """Remove the locks of killed processes of this machine in `folder`, and half-written folders without a lock."""
    dead = {file.with_suffix("") for file in folder.glob("*.lock") if runs(_parse(_read_or_none(file))) is False}
    half = {p.with_name(p.name[1:].rpartition(".tmp-")[0]) for p in folder.glob(".*.tmp-*") if p.is_dir()}
    for path in dead | half:
        with suppress(Locked, OSError), lock(path):
            pass


def _acquire(file: Path, token: str) -> bool:
    """Whether it was taken over from a dead owner. Raises Locked."""
    taken_over = False
    for _ in range(3):
        temporary = file.with_name(f".{file.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_text(token)
            with suppress(FileNotFoundError):  # the lock's owner took it for left behind: again
                now_s = temporary.stat().st_mtime
                os.link(temporary, file)  # unlike O_EXCL + write, the lock never exists without its content
                return taken_over
        except FileExistsError:
            owner = _read_or_none(file)
            if owner == token:  # NFS did it and lost the answer
                return taken_over
            _require_dead(file, now_s)
            _set_aside(file, owner)
            taken_over = True
        finally:
            temporary.unlink(missing_ok=True)
    raise Locked(f"{file} changes hands")


def _set_aside(file: Path, owner: str | None) -> None:
    """Remove the lock of a dead `owner`; of two jobs that try, one succeeds, and neither takes a fresh lock away."""
    aside = temporary_beside(file)
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
    alive = runs(owner)
    if not owner or alive is False or now_s - beat_s > DEAD_AFTER_S:
        return
    held = f"{file.name} is held by process {owner.get('pid')} on {owner.get('host')}"
    raise Locked(held, beat="" if alive else f"{text} {beat_s}")


def _parse(text: str | None) -> dict[str, Any]:
    try:
        return dict(json.loads(text or ""))
    except (ValueError, TypeError):
        return {}


def runs(owner: Mapping[str, Any]) -> bool | None:
    """Whether the owner of a lock runs; None where this process cannot see it, being on another machine."""
    if not owner or any(owner.get(key) != value for key, value in _machine().items()):
        return None
    return bool(owner.get("started") == _started(owner["pid"]))


def process(pid: int) -> dict[str, Any]:
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
