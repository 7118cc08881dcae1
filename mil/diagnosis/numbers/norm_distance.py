"""How far the images a network sees are from those it was trained on, layer by layer.

A pretrained network's batch norms hold the mean and variance of what they saw in ImageNet; the feature files hold the
same moments of the cohort. Per layer the distance is the Fréchet distance of the two diagonal normal distributions in
units of ImageNet's standard deviation (see features.statistics.cohort), and beside it the symmetric Kullback-Leibler
divergence, median over channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.embed.device import pick_devices
from features.encoders import Encoder
from features.encoders.norms import norm_layers, norm_reference
from features.feature_file import SlideStatistics
from features.statistics.cohort import EPSILON, by_layer, frechet_by_layer
from features.statistics.norm_moments import norm_moments
from mil.diagnosis.finding import Figure
from mil.diagnosis.numbers.sample import steps
from mil.metrics.bootstrap import interval
from tiling.slides.slide import Pixels

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """ImageNet's moments (ΣC,), and which channels belong to which layer."""

    mean: Floats
    variance: Floats
    layers: dict[str, int]

    def distances(self, mean: Floats, variance: Floats) -> Floats:
        """Fréchet distance (…, L) of moments (…, ΣC)."""
        found: Floats = frechet_by_layer(mean, variance, self.mean, self.variance, self.layers)
        return found

    def divergences(self, mean: Floats, variance: Floats) -> Floats:
        """Symmetric Kullback-Leibler divergence (L,), the median over the channels of a layer."""
        v, w, d = variance + EPSILON, self.variance + EPSILON, (mean - self.mean) ** 2
        both = ((v + d) / w + (w + d) / v) / 2 - 1
        return np.array([float(np.median(part)) for part in by_layer(both, self.layers)])

    def mean_distance(self, slides: Sequence[SlideStatistics], weights: Floats) -> Figure:
        """The layers' mean distance of S slides, with its interval over weights (R, S), the first of which are ones."""
        weights = weights[weights.sum(1) > 0]
        return dict(interval(self.distances(*drawn_moments(slides, weights)).mean(1)))


def reference_of(encoder: Encoder) -> Reference:
    assert encoder.unmerged is not None
    mean, variance = norm_reference(encoder.unmerged)
    return Reference(mean, variance, norm_layers(encoder.unmerged))


def gap_of_images(encoder: Encoder, pixels: Pixels, device: str = "cpu") -> Floats:
    """Distance (L,) of each layer of images (n, P, P, 3) uint8 RGB from what the encoder was trained on."""
    seen = norm_moments(encoder, steps(pixels), pick_devices(device)[0])
    return reference_of(encoder).distances(seen.mean, seen.variance)


def drawn_moments(slides: Sequence[SlideStatistics], weights: Floats) -> tuple[Floats, Floats]:
    """Mean and variance (R, ΣC) of all patches of S slides under weights (R, S)."""
    patches = np.array([s.norm_patches for s in slides], np.float64)
    means = np.stack([s.norm_mean for s in slides]).astype(np.float64)
    squares = np.stack([s.norm_var for s in slides]).astype(np.float64) + means**2
    share = weights * patches
    share /= share.sum(1, keepdims=True)
    mean = share @ means
    return mean, np.maximum(share @ squares - mean**2, 0)
