"""Which slides a command is asked to do, out of those whose files lie in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow, load_table
from tiling.objects.folder import ObjectFolder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Candidates:
    """What lies in a folder of input."""

    folder: Path | ObjectFolder
    slide_ids: Sequence[str]
    expected: str  # the folder that is asked for, in an error's words
    missing: str  # what is said where nothing was found


def requested_slides(found: Candidates, table: "Path | pd.DataFrame | None") -> list[SlideRow]:
    """The slides of the table, or all that were found. Raises RequestError.

    A slide of the table that was not found fails when its turn comes.
    """
    if isinstance(found.folder, Path) and not found.folder.is_dir():
        raise RequestError(f"{found.folder}: no such folder; expected {found.expected}")
    if not found.slide_ids:
        raise RequestError(f"{found.folder}: {found.missing}")
    if table is None:
        return [SlideRow(slide_id) for slide_id in found.slide_ids]
    return load_table(table, needs_path=False)
