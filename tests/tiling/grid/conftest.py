from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Picture:
    """A slide in memory: level 0 is given, further levels are area averages by whole factors."""

    backend, mpp_source, path = "memory", "memory", Path("picture")

    def __init__(self, pixels, mpp=(0.25, 0.25), factors=(1,)):
        self.levels = [
            pixels[: len(pixels) // f * f, : pixels.shape[1] // f * f]
            .reshape(len(pixels) // f, f, pixels.shape[1] // f, f, 3)
            .mean((1, 3))
            .round()
            .astype(np.uint8)
            for f in factors
        ]
        self.level_sizes = tuple((p.shape[1], p.shape[0]) for p in self.levels)
        self.downsamples = tuple(float(f) for f in factors)
        self.mpp = mpp

    def read(self, level, x, y, width, height, reduction=1):
        width, height = width * reduction, height * reduction
        out = np.full((height, width, 3), 255, np.uint8)
        top, left = y * reduction, x * reduction
        part = self.levels[level][max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
        out[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]] = part
        return np.asarray(Image.fromarray(out).reduce(reduction))

    def close(self):
        pass


@pytest.fixture(scope="session")
def picture():
    """picture(pixels, mpp, factors) -> a slide in memory; black pixels unless they are told."""

    def make(pixels=None, mpp=0.25, factors=(1, 4, 16)):
        return Picture(np.zeros((64, 64, 3), np.uint8) if pixels is None else pixels, (mpp, mpp), factors)

    return make
