"""Where patches come from, as the encoder's pipe needs them: pixels, and where the tissue is."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.statistics.colours import Tissue
from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore
from tiling.store.reference import patches_of_slide


@dataclass(frozen=True)
class PatchSource:
    """Patches of one slide, each to be read once, about in order. Functions may be called from several threads."""

    count: int
    side: int  # P in pixels
    read: Callable[[range, Pixels], None]  # fills (n, P, P, 3) uint8 RGB with these of the patches
    tissue: Callable[[range], Tissue] | None = None  # without it, all is tissue
    stop: Callable[[], None] = lambda: None  # reads that wait need not wait any longer, and may fail

    def all(self) -> Pixels:
        """(N, P, P, 3) uint8 RGB."""
        out = np.empty((self.count, self.side, self.side, 3), np.uint8)
        if self.count:
            self.read(range(self.count), out)
        return out


def in_memory(patches: Pixels) -> PatchSource:
    """(N, P, P, 3) uint8 RGB."""

    def read(batch: range, out: Pixels) -> None:
        out[:] = patches[batch.start : batch.stop]

    return PatchSource(len(patches), patches.shape[1], read)


@contextmanager
def patches_of(store: PatchStore, slide: Path | None, indices: Sequence[int] | None = None) -> Iterator[PatchSource]:
    """Patches of a store, from the slide itself where the store holds coordinates only. Raises SlideError.

    indices: those that are wanted; by default all.
    """
    chosen = range(len(store)) if indices is None else indices
    mask, side = np.pad(store.tissue_mask, 1), store.info.patch_size_px
    height_l0, width_l0 = store.info.height_l0, store.info.width_l0

    def tissue(batch: range) -> Tissue:
        x, y = store.coords_l0[[chosen[i] for i in batch]].T
        return Tissue(mask, _cells(store, y, mask.shape[0], height_l0), _cells(store, x, mask.shape[1], width_l0))

    where_tissue = None if math.isnan(store.info.thumbnail_downsample) else tissue
    if store.has_pixels:

        def read(batch: range, out: Pixels) -> None:
            store.read([chosen[i] for i in batch], out)

        yield PatchSource(len(chosen), side, read, where_tissue)
        return
    if slide is None:
        raise SlideError(
            f"{store.path}: holds coordinates only (--pixels reference); "
            "name the slides with --slides TABLE, a table whose column `path` has local files (no URLs)"
        )
    with patches_of_slide(store, slide, chosen) as of_slide:

        def copy(batch: range, out: Pixels) -> None:
            out[:] = of_slide.read(batch)

        yield PatchSource(len(chosen), side, copy, where_tissue, of_slide.stop)


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
