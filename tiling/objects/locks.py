"""One job at a time makes an output in an object store: `<name>.lock` is put where there is none, with a heartbeat.

A dead owner's lock is replaced, which succeeds for one of those that try. Locks save work that two would do; that an
output is whole does not hang on them, see tiling.objects.folder.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import DEAD_AFTER_S, HEARTBEAT_S, Locked, process, runs
from tiling.objects.folder import ABSENT, ObjectFolder, Taken, Version


@contextmanager
def object_lock(folder: ObjectFolder, name: str) -> Iterator[None]:
    """Hold `<name>.lock`. Raises Locked if a live job holds it.

    A lock is dead when its process is gone (same machine) or its heartbeat is older than `DEAD_AFTER_S` by the clock
    of the store.
    """
    key = f"{name}.lock"
    owner = {**process(os.getpid()), "token": secrets.token_hex(8)}
    version = _acquire(folder, key, owner)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(folder, key, owner, version, stop), daemon=True)
    try:
        beat.start()
        yield
    except Taken as error:
        raise Locked(str(error)) from error
    finally:
        stop.set()
        with suppress(SlideError, RequestError):  # one that is left is taken over
            there = folder.read(key)
            if there is not None and _owner(there[0]).get("token") == owner["token"]:
                folder.delete([key])


def _acquire(folder: ObjectFolder, key: str, owner: dict[str, Any]) -> Version:
    for _ in range(3):
        there = folder.read(key)
        if there is not None:
            _require_dead(folder, key, *there)
        with suppress(Taken):
            return folder.put(key, _beat(owner), ABSENT if there is None else there[1].version)
    raise Locked(f"{folder.shown(key)} changes hands")


def _require_dead(folder: ObjectFolder, key: str, text: bytes, found: Any) -> None:
    owner = _owner(text)
    alive = runs(owner)
    if not owner or alive is False:
        return
    if alive is None and _now_s(folder, key) - found.changed_s > DEAD_AFTER_S:
        return
    held = f"{key} is held by process {owner.get('pid')} on {owner.get('host')}"
    raise Locked(held, beat="" if alive else str(found))


def _now_s(folder: ObjectFolder, key: str) -> float:
    """The store's clock."""
    name = f"{key}.clock-{secrets.token_hex(8)}"
    folder.put(name, b"now", ABSENT)
    try:
        now = folder.find(name)
        return now.changed_s if now else 0.0
    finally:
        folder.delete([name])


def _heartbeat(folder: ObjectFolder, key: str, owner: dict[str, Any], version: Version, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            version = folder.put(key, _beat(owner), version)
        except Taken:  # by another job, which took this one for dead
            return
        except (SlideError, RequestError):  # the store may be away for a moment
            continue


def _beat(owner: dict[str, Any]) -> bytes:
    return json.dumps({**owner, "beat_s": time.time()}).encode()


def _owner(text: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}
