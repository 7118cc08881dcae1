"""Slides with known scores, for tests and benchmarks of heatmaps: white, with patches whose attention is given."""

import math
from pathlib import Path

import numpy as np

from mil.maps.drawn import Drawn
from mil.maps.scores import patch_scores
from mil.run.attention import SlideAttention
from mil.tasks.classification import Classification

GRID = [(x, y) for y in range(0, 2500, 512) for x in range(0, 3500, 512)]
"""Corners of patches of 512 px on a slide of 4,000 × 3,000 px."""


class White:
    """A slide of nothing but white, of any size."""

    backend, mpp_source, path = "memory", "memory", Path("white")

    def __init__(self, width, height, downsamples=(1.0,)):
        self.downsamples, self.mpp = downsamples, (0.25, 0.25)
        self.level_sizes = tuple((math.ceil(width / d), math.ceil(height / d)) for d in downsamples)

    def read(self, level, x, y, width, height, reduction=1):
        return np.full((height, width, 3), 255, np.uint8)


def attention(coords, values, size=512, width=4000, height=3000, mpp=0.25):
    """A slide whose attention, and whose log-odds of tumour / 2, are as `values`."""
    values = np.asarray(values, np.float32)
    return SlideAttention(
        attention=values / values.sum(), patch_logits=np.stack([-values, values], 1),
        coords=np.asarray(coords, np.int64),
        slide_id="s1", label="tumour", task=Classification(("normal", "tumour"), 1),
        probabilities=np.array([0.25, 0.75]), patch_size_l0=size, overlap_px=0, patch_size_px=256,
        width_l0=width, height_l0=height, mpp_l0=mpp,
    )  # fmt: skip


def drawn_of(slide, kind="attention", source=None, **more):
    """The slide as forms get it, over white."""
    settings = {"provenance": {"a": 1}, "opacity": 0.5, **more}
    source = source or White(slide.width_l0, slide.height_l0)
    return Drawn(slide.slide_id, slide, patch_scores(slide, kind), source, **settings)
