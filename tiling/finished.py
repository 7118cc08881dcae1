"""Whether a slide's store is there already, as these settings would make it; said without opening the slide."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tiling.config import TilingConfig
from tiling.jobs.outcomes import Outcome
from tiling.manifest import SlideRow
from tiling.rules import RULES
from tiling.slides.files import slide_fingerprint
from tiling.store.patches import StoreHead, provenance, read_head


def finished_store(
    row: SlideRow, config: TilingConfig, path: Path, fingerprint_of: Callable[[Path], str] = slide_fingerprint
) -> StoreHead | None:
    """The finished store at `path`; None if there is none, or another, or a new one is wanted.

    Of a slide that a URL names, the store says the version that it was made from; any other has to be copied first.
    Only what the store says of itself is read. Raises SlideError where that is damaged.
    """
    if config.overwrite or not path.exists():
        return None
    store = read_head(path)
    return store if wanted(row, config, store, fingerprint_of) == store.info.provenance() else None


def wanted(
    row: SlideRow, config: TilingConfig, store: StoreHead, fingerprint_of: Callable[[Path], str] = slide_fingerprint
) -> dict[str, Any] | None:
    """The provenance that the slide's store is to have; None where a copy of the slide must be made to know it.

    store: the one that is there.
    """
    if row.path is not None:
        fingerprint = fingerprint_of(row.path)
    elif row.remote_version and row.remote_version == store.info.remote_version:
        fingerprint = store.info.fingerprint
    else:
        return None
    return provenance(fingerprint, mpp_in_table(row), mask_sha256(row), content(row, config), RULES)


def ended(store: StoreHead, status: Literal["done", "skipped"], reason: str = "") -> Outcome:
    """The outcome of a slide whose store this is: how many patches it holds, and how much of the tissue they cover."""
    covered = store.info.tissue_covered
    figures = {} if math.isnan(covered) else {"tissue_covered": round(covered, 4)}
    return Outcome(store.info.slide_id, status, reason, len(store), figures=figures)


def content(row: SlideRow, config: TilingConfig) -> dict[str, object]:
    """The settings that decide about this slide's store, as JSON values."""
    return config.content() if row.corner_l0 is None else config.content() | {"grid": list(row.corner_l0)}


def mpp_in_table(row: SlideRow) -> float:
    """µm per level-0 pixel; NaN if the table gives none."""
    return math.nan if row.mpp is None else row.mpp


def mask_sha256(row: SlideRow) -> str:
    """Of the user's own tissue mask; empty if there is none."""
    return "" if row.mask is None else hashlib.sha256(row.mask.read_bytes()).hexdigest()
