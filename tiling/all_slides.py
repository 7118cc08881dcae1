"""All slides to patch stores: what is finished is seen at once, the rest goes to workers.

What tiles a slide is loaded by the workers alone, so that a run in which nothing is left to do ends at once.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tiling.config import TilingConfig
from tiling.elsewhere import bring_notes, draw_page, finished_in_objects, put_notes, tile_into
from tiling.finished import ended, finished_store
from tiling.jobs.errors import SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import is_held, working_folder
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.jobs.threads import ordered_map
from tiling.jobs.workers import load_ahead
from tiling.manifest import SlideRow, largest_first
from tiling.objects.folder import ObjectFolder
from tiling.qc.facts import is_current
from tiling.qc.fault import fault_of
from tiling.qc.page import write_qc_page
from tiling.seen import Seen, stamps_of
from tiling.staging import Stage, require_stage, staged, with_remote_version
from tiling.store.patches import read_head, store_path

_LOOK_S = 0.5  # for finished slides; beyond this, looking is work for all cores
_ASKED_AT_ONCE = 32  # stores for the versions of their slides


@dataclass(frozen=True)
class _Run:
    config: TilingConfig
    out: Path
    address: str = ""  # of the output, where that is brought elsewhere from `out`


def tile_slides(
    rows: Sequence[SlideRow], config: TilingConfig, out: Path | ObjectFolder, listener: Listener = SILENT
) -> Outcomes:
    """Tile every slide into `out`, largest first, and write its quality-control page. Raises RequestError."""
    require_stage(rows, config)
    if isinstance(out, ObjectFolder):
        return _into_objects(rows, config, out, listener)
    seen = Seen(out, config.part)
    finished = {} if config.scheduler else _finished(rows, config, out, seen)
    stamps = stamps_of(row for row in rows if row.slide_id not in finished)
    tile = _tile_copy if config.stage and config.scheduler else _tile_slide
    outcomes = _run(rows, finished, functools.partial(tile, config=config, out=out), _Run(config, out), listener)
    if fault := fault_of(lambda: _note(outcomes, stamps, out, seen), "seen.json"):
        listener.warn(fault)
    if fault := fault_of(lambda: write_qc_page(out), "qc.html"):
        listener.warn(fault)
    return outcomes


def _into_objects(rows: Sequence[SlideRow], config: TilingConfig, out: ObjectFolder, listener: Listener) -> Outcomes:
    """Each slide's store is made in a local folder and brought to `out` by the process that has made it."""
    out.require_writable()
    with working_folder(config.stage) as here:
        bring_notes(out, here)
        seen = Seen(here, config.part)
        finished = {} if config.scheduler else finished_in_objects(rows, config, out, seen)
        work = functools.partial(_tile_into, config=config, objects=out)
        outcomes = _run(rows, finished, work, _Run(config, here, str(out)), listener)
        if fault := fault_of(seen.write, "seen.json"):
            listener.warn(fault)
        changed = bool(outcomes.counts.keys() - {"skipped"})
        if fault := fault_of(lambda: draw_page(out, here, changed), "qc.html"):
            listener.warn(fault)
        put_notes(here, out, config.part)
    return outcomes


def _run(
    rows: Sequence[SlideRow],
    finished: Mapping[str, Outcome],
    work: Callable[[SlideRow], Outcome],
    run: "_Run",
    listener: Listener,
) -> Outcomes:
    config = run.config
    workers = config.workers or len(os.sched_getaffinity(0))
    ahead = Stage(config, run.out, workers) if config.stage and not config.scheduler else None
    execution = Execution(workers, scheduler=config.scheduler, part=config.part, address=run.address, ahead=ahead)
    left = largest_first([row for row in rows if row.slide_id not in finished])
    if left and not config.scheduler:
        load_ahead("tiling.pipeline")
    return run_slides(left, work, run.out, execution, listener, tuple(finished.values()))


def _finished(rows: Sequence[SlideRow], config: TilingConfig, out: Path, seen: Seen) -> dict[str, Outcome]:
    """Outcomes of slides that a look shows to be finished; all others, damaged ones too, are for workers."""
    there = [row for row in rows if store_path(out, row.slide_id).exists()]
    here, elsewhere = [row for row in there if not row.url], [row for row in there if row.url]
    found: dict[str, Outcome | None] = {}
    look = functools.partial(_finished_slide, config=config, out=out, seen=seen)
    end = time.monotonic() + _LOOK_S
    for row in here:
        if seen.knows(row.slide_id) or time.monotonic() < end:
            found[row.slide_id] = look(row)
    with closing(ordered_map(look, elsewhere, _ASKED_AT_ONCE)) as looks:
        found |= {row.slide_id: outcome for row, outcome in zip(elsewhere, looks, strict=True)}
    return {slide_id: outcome for slide_id, outcome in found.items() if outcome is not None}


def _finished_slide(row: SlideRow, config: TilingConfig, out: Path, seen: Seen) -> Outcome | None:
    """No lock is taken: a store is whole wherever it is, and one that is held is for workers."""
    path = store_path(out, row.slide_id)
    with suppress(SlideError, OSError):
        row = with_remote_version(row) if row.url else row
        if not is_held(path):
            store = finished_store(row, config, path, lambda _: seen.fingerprint(row))
            if store is not None and is_current(store, out):
                return ended(store, "skipped", "already done")
    return None


def _note(outcomes: Outcomes, stamps: Mapping[str, str], out: Path, seen: Seen) -> None:
    """What the files of this run's slides were. stamps: from before; where they have changed, that is seen again."""
    for outcome in outcomes:
        if outcome.status in ("done", "skipped", "empty") and (stamp := stamps.get(outcome.slide_id)):
            with suppress(SlideError):
                seen.note(outcome.slide_id, stamp, read_head(store_path(out, outcome.slide_id)).info.fingerprint)
    seen.write()


def _tile_copy(row: SlideRow, config: TilingConfig, out: Path) -> Outcome:
    """On a worker elsewhere, which copies to a disk of its own."""
    with staged(row, config, out) as here:
        return _tile_slide(here, config, out)


def _tile_slide(row: SlideRow, config: TilingConfig, out: Path) -> Outcome:
    from tiling.pipeline import tile_slide

    return tile_slide(row, config, out)


def _tile_into(row: SlideRow, config: TilingConfig, objects: ObjectFolder) -> Outcome:
    tile = _tile_copy if config.stage and config.scheduler else _tile_slide
    return tile_into(row, config, objects, tile)
