"""Where patches come from, as the encoder's pipe needs them: pixels, compressed pixels, and where the tissue is."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore
from tiling.store.reference import patches_of_slide

Indices = Sequence[int]


@dataclass(frozen=True)
class Tissue:
    """Which pixels of n patches (n, P, P) are tissue: mask[rows[i]][:, columns[i]]."""

    mask: NDArray[np.bool_]  # (H + 2, W + 2) of the slide, in a frame of what lies beyond it
    rows: NDArray[np.int64]  # (n, P)
    columns: NDArray[np.int64]  # (n, P)


@dataclass(frozen=True)
class PatchSource:
    """Patches of one slide, by index. All functions may be called from several threads at once."""

    count: int
    side: int  # P in pixels
    read: Callable[[Indices], Pixels]  # (n, P, P, 3) uint8 RGB
    read_jpeg: Callable[[Indices], list[bytes]] | None = None  # where patches are kept as JPEG
    tissue: Callable[[Indices], Tissue] | None = None  # without it, all is tissue


def in_memory(patches: Pixels) -> PatchSource:
    """(N, P, P, 3) uint8 RGB."""
    return PatchSource(len(patches), patches.shape[1], lambda indices: patches[indices])


@contextmanager
def patches_of(store: PatchStore, slide: Path | None) -> Iterator[PatchSource]:
    """Patches of a store, from the slide itself where the store holds coordinates only. Raises SlideError."""

    mask, side = np.pad(store.tissue_mask, 1), store.info.patch_size_px
    has_mask = not math.isnan(store.info.thumbnail_downsample)

    def tissue(indices: Indices) -> Tissue:
        x, y = store.coords_l0[indices].T
        height_l0, width_l0 = store.info.height_l0, store.info.width_l0
        return Tissue(mask, _cells(store, y, mask.shape[0], height_l0), _cells(store, x, mask.shape[1], width_l0))

    if store.has_pixels:
        read_jpeg = store.read_encoded if store.info.config["pixels"] == "jpeg" else None
        yield PatchSource(len(store), side, store.read, read_jpeg, tissue if has_mask else None)
        return
    if slide is None:
        raise SlideError(
            f"{store.path}: holds coordinates only (--pixels reference); "
            "name the slides with --slides TABLE, a table with the column `path`"
        )
    with patches_of_slide(store, slide) as read:
        yield PatchSource(len(store), side, read, None, tissue if has_mask else None)


def _cells(store: PatchStore, corners_l0: NDArray[np.int64], cells: int, length_l0: int) -> NDArray[np.int64]:
    """Along one axis: the framed mask's cell (n, P) that the middle of each patch pixel lies in."""
    info = store.info
    middles = (np.arange(info.patch_size_px) + 0.5) * info.patch_size_l0 / info.patch_size_px
    at_l0 = corners_l0[:, None] + middles
    on_slide = 1 + np.minimum((at_l0 / info.thumbnail_downsample).astype(np.int64), cells - 3)
    return np.where(at_l0 < 0, 0, np.where(at_l0 < length_l0, on_slide, cells - 1))


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0..count - 1, in the middles of equal parts."""
    parts = min(wanted, count)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]
