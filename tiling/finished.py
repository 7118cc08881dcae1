"""Whether a slide's store is there already, as these settings would make it; said without opening the slide."""

import hashlib
import math
from pathlib import Path

from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.rules import RULES
from tiling.slides.files import slide_fingerprint
from tiling.store.patches import PatchStore, provenance


def finished_patches(row: SlideRow, config: TilingConfig, path: Path) -> int | None:
    """How many patches the finished store at `path` holds; None if there is none, or another, or a new one is wanted.

    The store's lock must be held. Raises SlideError for a store that is damaged.
    """
    if config.overwrite or row.path is None or not path.exists():
        return None
    store = PatchStore(path)
    wanted = provenance(slide_fingerprint(row.path), mpp_in_table(row), mask_sha256(row), config.content(), RULES)
    return len(store) if store.info.provenance() == wanted else None


def mpp_in_table(row: SlideRow) -> float:
    """µm per level-0 pixel; NaN if the table gives none."""
    return math.nan if row.mpp is None else row.mpp


def mask_sha256(row: SlideRow) -> str:
    """Of the user's own tissue mask; empty if there is none."""
    return "" if row.mask is None else hashlib.sha256(row.mask.read_bytes()).hexdigest()
