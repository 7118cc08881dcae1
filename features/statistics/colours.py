"""The colours of a slide's tissue: mean and standard deviation of each channel over all its tissue pixels.

They come from whole-number sums over pixels. The mean of batches' variances, a common substitute, is smaller: it leaves
out how batches differ.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_AT_ONCE = 8  # images in wide integers
_HISTOGRAMS = {"cpu"}  # devices whose pixels PIL can count


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


def pixel_sums(images: Tensor, tissue: Tensor | None = None) -> PixelSums:
    """images: (n, 3, P, P) uint8 on any device; tissue: (n, P, P) bool, by default everywhere."""
    if images.device.type in _HISTOGRAMS:
        return _sums_of_histograms(images, tissue)
    count = images[:, 0].numel() if tissue is None else int(tissue.sum())
    sums, squares = torch.zeros(2, 3, dtype=torch.int64, device=images.device)
    for i in range(0, len(images), _AT_ONCE):
        wide = images[i : i + _AT_ONCE].to(torch.int32)
        if tissue is not None:
            wide *= tissue[i : i + _AT_ONCE, None]
        sums += wide.sum((0, 2, 3))
        squares += wide.square_().sum((0, 2, 3))
    return PixelSums(count, _three(sums), _three(squares))


def _sums_of_histograms(images: Tensor, tissue: Tensor | None) -> PixelSums:
    """On a CPU ten times as fast as wide integers."""
    histogram = np.zeros((3, 256), np.int64)
    for i, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        mask = None if tissue is None else Image.fromarray(tissue[i].numpy())
        histogram += np.reshape(Image.fromarray(image).histogram(mask), (3, 256))
    values = np.arange(256)
    sums, squares = (torch.from_numpy(histogram @ values**power) for power in (1, 2))
    return PixelSums(int(histogram[0].sum()), _three(sums), _three(squares))


def _three(values: Tensor) -> tuple[int, int, int]:
    a, b, c = values.tolist()
    return a, b, c
