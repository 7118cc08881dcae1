"""Mean and standard deviation of red, green and blue over all tissue pixels.

The mean of batches' deviations, a common substitute, is smaller: it leaves out how batches differ. Here a slide stands
for a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.feature_file import SlideStatistics
from features.statistics.cohort import Pool

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Colours:
    """Mean and deviation (3,) of RGB in 0..1, and what averaging the slides' deviations would give."""

    mean: Floats
    std: Floats
    averaged_std: Floats


def with_colours(statistics: Sequence[SlideStatistics | None]) -> list[tuple[int, SlideStatistics]]:
    """Position and sums of the slides whose file has any."""
    return [(i, of) for i, of in enumerate(statistics) if of is not None and of.tissue_pixels]


def colours_of(statistics: Iterable[SlideStatistics | None]) -> Colours | None:
    """Over all tissue pixels of these slides; None where no file has the sums."""
    found = [of for _, of in with_colours(list(statistics))]
    if not found:
        return None
    pool = Pool()
    for of in found:
        pool.add(of.tissue_pixels, of.pixel_mean, of.pixel_std**2)
    return Colours(pool.mean, np.sqrt(pool.variance), np.mean([of.pixel_std for of in found], axis=0))


def drawn_colours(found: Sequence[SlideStatistics], weights: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation (R,), each averaged over the channels, of S slides under weights (R, S)."""
    pixels = weights * np.array([of.tissue_pixels for of in found], np.float64)  # R, S
    share = pixels[pixels.sum(1) > 0] / pixels.sum(1, keepdims=True)[pixels.sum(1) > 0]
    means = np.stack([of.pixel_mean for of in found])
    mean = share @ means
    std = np.sqrt(np.maximum(share @ (np.stack([of.pixel_std for of in found]) ** 2 + means**2) - mean**2, 0))
    return mean.mean(1), std.mean(1)
