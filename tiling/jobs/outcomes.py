"""How slides ended: one by one, all of a run, and the two files that say it in an output folder.

A slide is done, skipped, empty, failed with a reason, locked (another job is doing it at this moment), or not done
(the run stopped before). `summary.json` counts the outcomes; `failures.csv` names each failed slide and why, and is
absent when nothing failed. An array job with `--part i/n` writes `summary-i-of-n.json` and `failures-i-of-n.csv`, so
parts do not overwrite another's. Both name files without their folders, whose names may be those of patients.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tiling.jobs.atomic import write_csv, write_json
from tiling.jobs.locks import clear_left, waited_lock

if TYPE_CHECKING:
    import pandas as pd

_QUOTED_PATH = re.compile(r"""(['"])(?:[A-Za-z]:)?[\\/](?:(?!\1).)*[\\/]((?:(?!\1).)*)\1""")
# From a slash that starts a path to the last one before a colon, a semicolon or the next path: folders have spaces.
# What lies in a patch store is named from there.
_FOLDERS = re.compile(r"(?<![\w.%)\]])(?:[A-Za-z]:)?[\\/]+(?:(?:(?!: |; |\s[\\/]|\.zarr[\\/]).)*[\\/])?")
_URL_FOLDERS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://(?:[^\s'\"]*/)?")
_RELATIVE_FOLDERS = re.compile(r"(?<!\w)(?:[\w.~-]+[\\/])+(?=[\w-][\w.-]*\.[A-Za-z])")

Status = Literal["done", "skipped", "empty", "locked", "failed", "not done"]


@dataclass(frozen=True)
class Outcome:
    """How one slide ended. `patches` counts what its output holds."""

    slide_id: str
    status: Status
    reason: str = ""
    patches: int = 0
    stops: bool = False  # no other slide can be done either
    beat: str = ""  # of a lock whose owner cannot be seen, see tiling.jobs.locks.Locked
    warning: str = ""  # what could not be made beside the output itself
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)  # for the summary, by name


@dataclass(frozen=True)
class Outcomes:
    """How all slides of a run ended, in the order in which they did."""

    slides: tuple[Outcome, ...]
    out: Path | str  # folder, or its address in an object store
    failures: Path | str  # file that names the failed slides; absent where none failed
    seconds: float
    unwritten: str = ""  # why the summary could not be written, where that is so

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.slides)

    def __len__(self) -> int:
        return len(self.slides)

    @property
    def counts(self) -> dict[Status, int]:
        """Slides of each status that occurs."""
        counted = Counter(outcome.status for outcome in self.slides)
        return {status: counted[status] for status in get_args(Status) if counted[status]}

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.slides if outcome.status == "failed")

    @property
    def stopped(self) -> str:
        """Why the run stopped before its end; empty where it did not."""
        return next((outcome.reason for outcome in self.slides if outcome.stops), "")

    @property
    def patches(self) -> int:
        """Patches that this run has made."""
        return sum(outcome.patches for outcome in self.slides if outcome.status == "done")

    def table(self) -> "pd.DataFrame":
        """One row a slide, by slide_id: slide_id, status, reason, patches."""
        import pandas as pd  # here, so that a command answers at once

        names = ["slide_id", "status", "reason", "patches"]
        rows = [[getattr(outcome, name) for name in names] for outcome in _by_id(self.slides)]
        return pd.DataFrame(rows, columns=names)


def write_outcomes(
    outcomes: Sequence[Outcome], summary: Path, failures: Path, folders: Mapping[str, Sequence[Path]]
) -> None:
    """folders: where a slide's files lie, by slide id.

    Raises OSError where the files cannot be written, Locked where another job holds them for a minute.
    """
    outcomes = [replace(o, reason=without_folders(o.reason, folders.get(o.slide_id, ()))) for o in _by_id(outcomes)]
    counts = Counter(o.status for o in outcomes)
    slides = {o.slide_id: {"status": o.status, "reason": o.reason, "patches": o.patches, **o.figures} for o in outcomes}
    failed = [(o.slide_id, o.reason) for o in outcomes if o.status == "failed"]
    with waited_lock(summary):
        clear_left(failures)
        write_json(summary, {"counts": dict(counts), "slides": slides})
        if failed:
            write_csv(failures, [("slide_id", "reason"), *failed])
        else:
            failures.unlink(missing_ok=True)


def without_folders(reason: str, folders: Iterable[Path] = ()) -> str:
    """`reason` with a file's own name in the place of its path: folders may carry the names of patients.

    folders: known ones, which are found whatever their names hold; others by the look of a path.
    """
    for folder in folders:
        reason = reason.replace(f"{folder}/", "")
    reason = _QUOTED_PATH.sub(r"\1\2\1", _URL_FOLDERS.sub("", reason))
    return _RELATIVE_FOLDERS.sub("", _FOLDERS.sub("", reason))


def _by_id(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda o: o.slide_id)
