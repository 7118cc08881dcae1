"""Objects copied once to a local folder, for what maps files or reads them again and again."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

from tiling.jobs.atomic import atomic_file, no_room, write_json
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import Locked, lock
from tiling.jobs.threads import ordered_map
from tiling.objects.folder import Found, ObjectFolder

_AT_ONCE = 8
_RECORD = "copied.json"  # size and ETag or time of change, by name


def copy_objects(folder: ObjectFolder, wanted: Callable[[str], bool], into: Path) -> int:
    """Copy the objects of a folder, not of those below, whose names are wanted. Returns how many had to be copied.

    A copy whose size and ETag (or else time of change) are the object's is kept; one whose object is gone is removed.
    Raises RequestError.
    """
    found = {name: each for name, each in folder.files().items() if "/" not in name}
    try:
        with lock(into / _RECORD):
            return _copy(folder, {name: each for name, each in found.items() if wanted(name)}, found, into)
    except Locked as error:
        raise RequestError(f"{into}: another job is copying {folder} to it ({error}); wait, then run again") from error
    except SlideError as error:
        raise RequestError(f"cannot be copied: {error}") from error
    except OSError as error:
        if no_room(error) is None:
            raise
        raise RequestError(f"{into}: its disk is full ({error.strerror}); make room or give another --stage") from error


def _copy(folder: ObjectFolder, wanted: dict[str, Found], there: Iterable[str], into: Path) -> int:
    record = _read(into / _RECORD)
    for name in record.keys() - set(there):
        (into / name).unlink(missing_ok=True)
        del record[name]
    missing = [name for name, found in wanted.items() if not _is_copy(into / name, record.get(name), found)]

    def fetch(name: str) -> tuple[str, list[object]]:
        read = folder.read(name)
        if read is None:
            raise SlideError(f"{folder.shown(name)}: was removed while it was copied; run again")
        with atomic_file(into / name) as temporary:
            temporary.write_bytes(read[0])
        return name, _said(read[1])

    try:
        with closing(ordered_map(fetch, missing, _AT_ONCE)) as fetched:
            record.update(fetched)
    finally:
        write_json(into / _RECORD, record)
    return len(missing)


def _is_copy(path: Path, recorded: object, found: Found) -> bool:
    return recorded == _said(found) and path.exists() and path.stat().st_size == found.size


def _said(found: Found) -> list[object]:
    """As a listing says it, too: Google's has no version, Azure's an ETag without quotes; times may be finer."""
    return [found.size, found.version.get("e_tag", "").strip('"') or int(found.changed_s)]


def _read(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text()))
    return {}
