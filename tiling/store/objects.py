"""CONTRACT patch store in an object store: `<slide_id>.zarr/<token>/` is one as on disk, whose token nobody else has.

`<slide_id>.zarr/zarr.json` is put last: it has the attributes of that store, `stored_in` (the token) and `patches` (N).
A reader MUST begin with it and MUST take what lies under other tokens for nothing: a killed upload left it, or it is
about to be removed. So a store is there whole or not at all, and another one takes its place at one stroke. A copy
of all these objects in a folder is read in the same way.
"""

import json
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.provenance import check_format
from tiling.jobs.workers import alive
from tiling.objects.folder import ABSENT, ObjectFolder, Version
from tiling.store.patches import FORMAT, VERSION, StoreHead, head_of, read_head

Item = TypeVar("Item")
_AT_ONCE = 4  # files of a store, each wholly in memory
ROOT = "zarr.json"


@dataclass(frozen=True)
class StoredObject:
    """A store in an object store."""

    head: StoreHead
    token: str
    version: Version  # of its root


def find_store(folder: ObjectFolder, slide_id: str) -> StoredObject | None:
    """One small object is read. Raises SlideError where it is damaged or of another version."""
    name = f"{slide_id}.zarr"
    found = folder.read(f"{name}/{ROOT}")
    if found is None:
        return None
    try:
        attributes = json.loads(found[0])["attributes"]
        token, count = str(attributes.pop("stored_in")), int(attributes.pop("patches"))
    except (ValueError, KeyError, TypeError) as error:
        raise SlideError(
            f"{folder.shown(name)}: its {ROOT} is damaged or was copied there from a folder ({error!r}); tile the "
            "slide again with --overwrite"
        ) from error
    check_format(attributes, FORMAT, VERSION, folder.shown(name))
    return StoredObject(head_of(Path(name), attributes, count), token, found[1].version)


def put_store(folder: ObjectFolder, path: Path, instead: Version = ABSENT) -> None:
    """Put the store at `path`, which is whole, and remove what lay there. instead: version of the root until then.

    The store's lock must be held. Raises Taken, and leaves nothing, where another job has put one meanwhile.
    """
    token = secrets.token_hex(8)
    place = f"{path.name}/{token}"
    left = list(folder.files(path.name))  # before the root is put: what others begin after that is not among it
    root = json.loads((path / ROOT).read_text())
    root["attributes"] |= {"stored_in": token, "patches": len(read_head(path))}

    def put(file: Path) -> None:
        folder.put(f"{place}/{file.relative_to(path).as_posix()}", file.read_bytes())

    try:
        _at_once(put, [file for file in sorted(path.rglob("*")) if file.is_file()])
        folder.put(f"{path.name}/{ROOT}", json.dumps(root, indent=2).encode(), instead)
    except BaseException:
        with suppress(SlideError, RequestError):
            folder.delete(folder.files(place))
        raise
    with suppress(SlideError):  # the next one that is put removes it
        folder.delete(name for name in left if name != f"{path.name}/{ROOT}")


def fetch_store(folder: ObjectFolder, slide_id: str, into: Path) -> Path:
    """Copy a store into the folder `into`, and return its path there. Raises SlideError."""
    found = find_store(folder, slide_id)
    name = f"{slide_id}.zarr"
    if found is None:
        raise SlideError(f"{folder.shown(name)}: no patch store there; make it with tile-slides")
    path, place = into / name, f"{name}/{found.token}"

    def fetch(key: str) -> None:
        read = folder.read(key)
        if read is None:
            raise SlideError(f"{folder.shown(name)}: was tiled again, or taken away, while it was read; run again")
        file = path / key.removeprefix(f"{place}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read[0])

    _at_once(fetch, folder.files(place))
    if not (path / ROOT).exists():
        raise SlideError(f"{folder.shown(name)}: what its {ROOT} names is gone; tile the slide again with --overwrite")
    return path


def _at_once(do: Callable[[Item], None], items: Iterable[Item]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(do, items):
            alive()
