"""The colours of a slide's tissue: mean and standard deviation of each channel over all its tissue pixels.

They come from whole-number sums over pixels. The mean of batches' variances, a common substitute, is smaller: it leaves
out how batches differ.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.slides.slide import Pixels


@dataclass(frozen=True)
class Tissue:
    """Which pixels of n patches (n, P, P) are tissue: mask[rows[i]][:, columns[i]]."""

    mask: NDArray[np.bool_]  # (H + 2, W + 2) of the slide, in a frame of what lies beyond it
    rows: NDArray[np.int64]  # (n, P), rising
    columns: NDArray[np.int64]  # (n, P), rising

    def inside(self, i: int) -> NDArray[np.bool_] | None:
        """(P, P) of one patch; None where all of it is tissue."""
        rows, columns = self.rows[i], self.columns[i]
        if self.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
            return None
        inside: NDArray[np.bool_] = self.mask[rows[:, None], columns]
        return inside


@dataclass(frozen=True)
class PixelSums:
    """Whole-number sums over tissue pixels of RGB in 0..255, so that adding is exact in any order."""

    count: int
    sums: tuple[int, int, int]
    squares: tuple[int, int, int]

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.count + other.count,
            _added(self.sums, other.sums),
            _added(self.squares, other.squares),
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """(3,) of RGB in 0..1; NaN where there is no pixel."""
        return np.array([s / self.count / 255 if self.count else np.nan for s in self.sums])

    @property
    def std(self) -> NDArray[np.float64]:
        """(3,) of RGB in 0..1, of the population; NaN where there is no pixel."""
        pairs = zip(self.sums, self.squares, strict=True)
        n = self.count  # in whole numbers up to the root: the difference of large numbers loses no digit
        return np.array([np.sqrt((n * q - s * s) / n**2) / 255 if n else np.nan for s, q in pairs])


NO_PIXELS = PixelSums(0, (0, 0, 0), (0, 0, 0))


def _added(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


class TissueColours:
    """Counts patches of one slide as they are read, by several threads."""

    def __init__(self, tissue: Callable[[range], Tissue] | None) -> None:
        self.sums = NO_PIXELS
        self._tissue = tissue
        self._lock = threading.Lock()

    def look(self, patches: range, pixels: Pixels) -> None:
        found = pixel_sums(pixels, self._tissue(patches) if self._tissue else None)
        with self._lock:
            self.sums = self.sums + found


def pixel_sums(patches: Pixels, tissue: Tissue | None = None) -> PixelSums:
    """patches: (n, P, P, 3) uint8; tissue: by default everywhere."""
    histogram = np.zeros((3, 256), np.int64)
    for i, patch in enumerate(patches):
        inside = None if tissue is None else tissue.inside(i)
        mask = None if inside is None else Image.fromarray(inside)
        histogram += np.reshape(Image.fromarray(patch).histogram(mask), (3, 256))
    values = np.arange(256)
    return PixelSums(int(histogram[0].sum()), _three(histogram @ values), _three(histogram @ values**2))


def _three(values: NDArray[np.int64]) -> tuple[int, int, int]:
    a, b, c = values.tolist()
    return a, b, c
