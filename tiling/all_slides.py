"""All slides to patch stores: what is finished is seen at once, the rest goes to workers.

What tiles a slide is loaded by the workers alone, so that a run in which nothing is left to do ends at once.
"""

import functools
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tiling.config import TilingConfig
from tiling.finished import ended, finished_store
from tiling.jobs.errors import SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import Locked, lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.jobs.workers import load_ahead
from tiling.manifest import SlideRow, largest_first
from tiling.qc.facts import is_current
from tiling.qc.fault import fault_of
from tiling.qc.page import write_qc_page
from tiling.store.patches import store_path

_LOOK_S = 0.5  # for finished slides; beyond this, looking is work for all cores


def tile_slides(rows: Sequence[SlideRow], config: TilingConfig, out: Path, listener: Listener = SILENT) -> Outcomes:
    """Tile every slide into `out`, largest first, and write its quality-control page."""
    workers = config.workers or len(os.sched_getaffinity(0))
    execution = Execution(workers, scheduler=config.scheduler, part=config.part)
    finished = {} if config.scheduler else _finished(rows, config, out)
    left = [row for row in largest_first(rows) if row.slide_id not in finished]
    work = functools.partial(_tile_slide, config=config, out=out)
    if left and not config.scheduler:
        load_ahead("tiling.pipeline")
    outcomes = run_slides(left, work, out, execution, listener, tuple(finished.values()))
    if fault := fault_of(lambda: write_qc_page(out), "qc.html"):
        listener.warn(fault)
    return outcomes


def _finished(rows: Sequence[SlideRow], config: TilingConfig, out: Path) -> dict[str, Outcome]:
    """Outcomes of slides that a quick look shows to be finished; all others, damaged ones too, are for workers."""
    found: dict[str, Outcome] = {}
    end = time.monotonic() + _LOOK_S
    for row in rows:
        path = store_path(out, row.slide_id)
        if time.monotonic() > end or not path.exists():
            continue
        with suppress(SlideError, Locked, OSError), lock(path):
            store = finished_store(row, config, path)
            if store is not None and is_current(store, out):
                found[row.slide_id] = ended(store, "skipped", "already done")
    return found


def _tile_slide(row: SlideRow, config: TilingConfig, out: Path) -> Outcome:
    from tiling.pipeline import tile_slide

    return tile_slide(row, config, out)
