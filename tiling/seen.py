"""What was found in files before, so that a run with nothing left to do does not read them again.

`seen.json` in a folder of outputs (`seen-i-of-n.json` of a part) has by slide id the stamp of files (their names, sizes
and times of change as one hash) and what was found in them: of patch stores the fingerprint of the slide's files, of
feature files what made them. Files whose stamp is the same are taken for the same. It names no folder, and may be
deleted at any time.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tiling.jobs.atomic import write_text
from tiling.jobs.locks import Locked, is_held, waited_lock
from tiling.manifest import SlideRow
from tiling.slides.files import is_zarr, slide_files, slide_fingerprint

_SETTLED_S = 2.0  # since the last change, after which another one would show in the time of change


class Seen:
    """Of one output folder and part."""

    def __init__(self, out: Path, part: str = "") -> None:
        self._file = out / f"seen{'-' + part.replace('/', '-of-') if part else ''}.json"
        self._known: dict[str, tuple[str, str]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            said = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = {slide_id: (stamp, found) for slide_id, (stamp, found) in said.items()}
        self._noted: dict[str, tuple[str, str]] = {}

    def knows(self, slide_id: str) -> bool:
        return slide_id in self._known

    def found(self, slide_id: str, stamp: str) -> str:
        """What was noted; empty where nothing was, or the files have changed."""
        known, found = self._known.get(slide_id, ("", ""))
        return found if stamp and stamp == known else ""

    def fingerprint(self, row: SlideRow) -> str:
        """Of the slide's files, read if they are not known. Raises OSError."""
        assert row.path is not None
        stamp = stamp_of(row.path)
        fingerprint = self.found(row.slide_id, stamp) or slide_fingerprint(row.path)
        self.note(row.slide_id, stamp, fingerprint)
        return fingerprint

    def note(self, slide_id: str, stamp: str, found: str) -> None:
        """stamp: from before the files were read; empty, they are read the next time, too."""
        if stamp:
            self._noted[slide_id] = (stamp, found)

    def write(self) -> None:
        """Nothing where all was known, or another job holds the file for a minute. Raises OSError."""
        if self._noted.items() - self._known.items() or is_held(self._file):
            with suppress(Locked), waited_lock(self._file):
                write_text(self._file, json.dumps({**self._known, **self._noted}, sort_keys=True))


def stamps_of(rows: Iterable[SlideRow]) -> dict[str, str]:
    return {row.slide_id: stamp_of(row.path) for row in rows if row.path is not None and not row.url}


def stamp_of(slide: Path) -> str:
    """Of a slide's files; empty where these are gone or very many."""
    try:
        return "" if is_zarr(slide) else stamp_of_files(slide_files(slide))
    except OSError:
        return ""


def stamp_of_files(files: Iterable[Path]) -> str:
    """Names, sizes and times of change; empty where one was changed just now, so that these may not tell.

    Raises OSError.
    """
    sha = hashlib.sha256()
    for file in files:
        found = file.stat()
        if time.time() - found.st_mtime < _SETTLED_S:
            return ""
        sha.update(f"{file.name}:{found.st_size}:{found.st_mtime_ns};".encode())
    return sha.hexdigest()
