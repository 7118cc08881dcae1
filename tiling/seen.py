"""Fingerprints of slide files that were read before, so that a run with nothing left to do does not read them again.

`seen.json` in a folder of patch stores (`seen-i-of-n.json` of a part) has by slide id the stamp of a slide's files
(their names, sizes and times of change as one hash) and their fingerprint. Files whose stamp is the same are taken for
the same. It names no folder, and may be deleted at any time.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tiling.jobs.atomic import write_text
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
            self._known = {slide_id: (stamp, fingerprint) for slide_id, (stamp, fingerprint) in said.items()}
        self._noted: dict[str, tuple[str, str]] = {}

    def knows(self, row: SlideRow) -> bool:
        return row.slide_id in self._known

    def fingerprint(self, row: SlideRow) -> str:
        """Of the slide's files, read if they are not known. Raises OSError."""
        assert row.path is not None
        stamp = stamp_of(row.path)
        known = self._known.get(row.slide_id, ("", ""))
        fingerprint = known[1] if stamp and known[0] == stamp else slide_fingerprint(row.path)
        self.note(row.slide_id, stamp, fingerprint)
        return fingerprint

    def note(self, slide_id: str, stamp: str, fingerprint: str) -> None:
        """stamp: from before the files were read; empty, they are read the next time, too."""
        if stamp:
            self._noted[slide_id] = (stamp, fingerprint)

    def write(self) -> None:
        """Raises OSError."""
        if self._noted.items() - self._known.items():
            write_text(self._file, json.dumps({**self._known, **self._noted}, sort_keys=True))


def stamps_of(rows: Iterable[SlideRow]) -> dict[str, str]:
    return {row.slide_id: stamp_of(row.path) for row in rows if row.path is not None and not row.url}


def stamp_of(path: Path) -> str:
    """Names, sizes and times of change; empty where these may not tell: changed just now, gone, or very many files."""
    sha = hashlib.sha256()
    try:
        if is_zarr(path):
            return ""
        for file in slide_files(path):
            found = file.stat()
            if time.time() - found.st_mtime < _SETTLED_S:
                return ""
            sha.update(f"{file.name}:{found.st_size}:{found.st_mtime_ns};".encode())
    except OSError:
        return ""
    return sha.hexdigest()
