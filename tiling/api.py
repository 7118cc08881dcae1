"""What notebooks and scripts call: slides in, outcomes out, nothing printed and no state left behind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.jobs.command import settings
from tiling.jobs.errors import RequestError
from tiling.jobs.listener import Callback, OnOutcome
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.manifest import load_slides, select_part
from tiling.objects.folder import folder_at

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Outcome", "Outcomes", "RequestError", "TilingConfig", "tile"]


def tile(
    slides: "str | Path | pd.DataFrame",
    out: str | Path,
    config: TilingConfig | None = None,
    on_outcome: OnOutcome | None = None,
    **given: Any,
) -> Outcomes:
    """Cut slides into patch stores `out/<slide_id>.zarr`, as `tile-slides` does. Raises RequestError.

    slides: a slide table (.csv file, or data frame with its columns), a folder, one slide file, or a glob.
    out: a folder, or the address of one in an object store, such as "s3://bucket/patches".
    config: the settings; those given by name, such as `mpp=0.5`, take the place of its own.
    on_outcome: called with (outcome, slides that have ended, slides in all) as each slide ends.
    """
    config = settings(TilingConfig, config, given)
    rows = load_slides(slides, urls=True)
    rows = select_part(rows, config.part) if config.part else rows
    return tile_slides(rows, config, folder_at(out), Callback(on_outcome))
