"""What a network is fitted to before a run: some patches of all its slides, looked at by one job, for all jobs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.embed.patch_source import evenly_spaced, patches_of
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import Locked, lock
from tiling.manifest import SlideRow
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

_POLL_S = 2.0


@dataclass(frozen=True)
class Sample:
    """n patches of several slides."""

    pixels: Pixels  # (n, P, P, 3) uint8 RGB, in an order drawn by a seed
    slides: int


def make_once(path: Path, anew: bool, make: Callable[[], None]) -> None:
    """Have one job `make` the file, if it is not there or is wanted anew; the others wait for it."""
    while True:
        with suppress(Locked), lock(path):
            if not path.exists() or anew:
                make()
            return
        time.sleep(_POLL_S)


def draw_sample(rows: Sequence[SlideRow], patches: Path, wanted: int, seed: int, flag: str) -> Sample:
    """`wanted` patches in all, evenly spaced, at least one a slide. Raises RequestError in the name of the flag."""
    samples = list(_of_slides(rows, patches, max(1, wanted // len(rows)), flag))
    if not samples:
        raise RequestError(f"{flag}: no patch can be read from the stores in {patches}")
    sides = {pixels.shape[1] for pixels in samples}
    if len(sides) > 1:
        raise RequestError(f"{flag}: patches have different sides ({sorted(sides)} px); tile them with one")
    drawn = [patch for pixels in samples for patch in pixels]
    order = np.random.default_rng(seed).permutation(len(drawn))
    return Sample(np.stack([drawn[i] for i in order]), len(samples))


def _of_slides(rows: Sequence[SlideRow], patches: Path, each: int, flag: str) -> Iterator[Pixels]:
    """Evenly spaced patches (n, P, P, 3) of each slide that can be read; the others fail when their turn comes.

    Raises RequestError where a store is tiled again meanwhile: what is kept would be of patches that are gone.
    """
    for row in sorted(rows, key=lambda row: row.slide_id):
        with suppress(SlideError):
            store = PatchStore(patches / f"{row.slide_id}.zarr")
            if len(store):
                yield _read(store, row.path, evenly_spaced(len(store), each), flag)


def _read(store: PatchStore, slide: Path | None, indices: Sequence[int], flag: str) -> Pixels:
    try:
        with patches_of(store, slide, indices) as source:
            return source.all()
    finally:
        try:
            store.require_current()
        except SlideError as error:
            raise RequestError(f"{flag}: {error}") from error
