"""Patch stores that are made in a local folder and brought to an object store, with what is said of them there."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

from tiling.config import TilingConfig
from tiling.finished import ended, wanted
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import working_folder
from tiling.jobs.outcomes import Outcome
from tiling.jobs.provenance import require_same
from tiling.jobs.threads import ordered_map
from tiling.manifest import SlideRow
from tiling.objects.folder import ABSENT, ObjectFolder
from tiling.objects.locks import object_lock
from tiling.qc.facts import FOLDER, facts_path, picture_path
from tiling.qc.page import write_qc_page
from tiling.seen import Seen
from tiling.staging import with_remote_version
from tiling.store.objects import ROOT, find_store, put_store
from tiling.store.patches import read_head, store_path

Tile: TypeAlias = Callable[[SlideRow, TilingConfig, Path], Outcome]
_ASKED_AT_ONCE = 32
_NOTES = ("summary", "failures", "seen")  # what the names of files about a run begin with


def finished_in_objects(
    rows: Sequence[SlideRow], config: TilingConfig, out: ObjectFolder, seen: Seen
) -> dict[str, Outcome]:
    """Outcomes of slides whose stores are there, by one listing and one small object a store."""
    there = set(out.names()[0])
    look = functools.partial(_finished_slide, config=config, out=out, seen=seen)
    asked = [row for row in rows if f"{row.slide_id}.zarr" in there and not config.overwrite]
    with closing(ordered_map(look, asked, _ASKED_AT_ONCE)) as looks:
        return {outcome.slide_id: outcome for outcome in looks if outcome is not None}


def _finished_slide(row: SlideRow, config: TilingConfig, out: ObjectFolder, seen: Seen) -> Outcome | None:
    """All others, damaged ones too, are for workers."""
    with suppress(SlideError, OSError):
        row = with_remote_version(row) if row.url else row
        found = find_store(out, row.slide_id)
        if found is None:
            return None
        if wanted(row, config, found.head, lambda _: seen.fingerprint(row)) == found.head.info.provenance():
            return ended(found.head, "skipped", "already done")
    return None


def tile_into(row: SlideRow, config: TilingConfig, out: ObjectFolder, tile: Tile) -> Outcome:
    """Make one slide's store in a folder of its own and put it, or skip it where the same is there. Raises SlideError.

    tile: makes the store in the folder that it is given.
    """
    name = f"{row.slide_id}.zarr"
    with object_lock(out, name):
        root = out.find(f"{name}/{ROOT}")
        found = find_store(out, row.slide_id) if root and not config.overwrite else None
        if found is not None and (known := wanted(row, config, found.head)) is not None:
            require_same(found.head.info.provenance(), known, out.shown(name))
            return ended(found.head, "skipped", "already done")
        with working_folder(config.stage) as here:
            outcome = tile(row, config, here)
            path = store_path(here, row.slide_id)
            if found is not None:
                require_same(found.head.info.provenance(), read_head(path).info.provenance(), out.shown(name))
            _put(here, out, (picture_path(here, row.slide_id), facts_path(here, row.slide_id)))
            put_store(out, path, root.version if root else ABSENT)
    return outcome


def bring_notes(out: ObjectFolder, here: Path) -> None:
    """What earlier runs said, and other parts."""
    for name in out.names()[1]:
        if name.startswith(_NOTES) and (read := out.read(name)) is not None:
            (here / name).write_bytes(read[0])
            os.utime(here / name, (read[1].changed_s, read[1].changed_s))


def put_notes(here: Path, out: ObjectFolder, part: str) -> None:
    """What this run says, and the page. part: of an array job, the others of which put their own."""
    suffix = f"-{part.replace('/', '-of-')}" if part else ""
    failures = f"failures{suffix}.csv"
    _put(here, out, (here / name for name in (f"summary{suffix}.json", failures, f"seen{suffix}.json", "qc.html")))
    if not (here / failures).exists():
        out.delete([failures])


def draw_page(out: ObjectFolder, here: Path, changed: bool) -> None:
    """Write `here/qc.html`, of the facts of all slides in `out`.

    changed: in this run. Else nothing is done, unless a job that was killed has left facts newer than the page.
    """
    facts = {name: found for name, found in out.files(FOLDER).items() if name.endswith(".json")}
    page = None if changed else out.find("qc.html")
    if page is not None and all(found.changed_s < page.changed_s for found in facts.values()):
        return
    (here / FOLDER).mkdir(exist_ok=True)
    with closing(ordered_map(out.read, facts, _ASKED_AT_ONCE)) as reads:
        for name, read in zip(facts, reads, strict=True):
            if read is not None:
                (here / name).write_bytes(read[0])
    write_qc_page(here)


def _put(here: Path, out: ObjectFolder, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            out.put(path.relative_to(here).as_posix(), path.read_bytes())
