"""Patches of a store that holds coordinates only (`--pixels reference`), read from the slide itself."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tiling.grid.resample import read_patch
from tiling.grid.scale import Scale
from tiling.jobs.errors import SlideError
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore


@contextmanager
def patches_of_slide(store: PatchStore, path: Path) -> Iterator[Callable[[Sequence[int]], Pixels]]:
    """Yield `read(indices)` like `PatchStore.read`, thread-safe.

    Raises SlideError if `path` is not the slide that the store was made from.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such slide; {store.path} holds coordinates only and needs it")
    if slide_fingerprint(path) != store.info.fingerprint:
        raise SlideError(f"{path}: not the slide that {store.path} was made from; its content differs")
    slide, info = open_slide(path, overlapping=store.info.overlap_px > 0), store.info
    scale = Scale(
        mpp_l0=info.mpp_l0,
        mpp_source=info.mpp_source,
        mpp=info.mpp,
        level=info.level,
        reduction=info.reduction,
        downsample=slide.downsamples[info.level] * info.reduction,
        patch_size_px=info.patch_size_px,
        patch_size_l0=info.patch_size_l0,
        stride_l0=info.patch_size_l0,
    )
    cut = functools.partial(read_patch, slide, scale, padding=info.padding_rgb)
    try:
        yield lambda indices: np.stack([cut(*corner) for corner in store.coords_l0[indices].tolist()])
    finally:
        slide.close()
