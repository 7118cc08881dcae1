"""What is counted on the way while a slide's patches are embedded, batch by batch."""

from dataclasses import dataclass

from features.feature_file import SlideStatistics
from features.statistics.colours import NO_PIXELS, PixelSums
from features.statistics.norm_moments import NormMoments, no_moments

NORM_EVERY = 64  # patches, of which one is shown to the batch norms


@dataclass(frozen=True)
class ByProducts:
    """Of some patches; those of two parts of a slide add up to those of both, in any order."""

    pixels: PixelSums
    norms: NormMoments  # of every 64th patch

    def __add__(self, other: "ByProducts") -> "ByProducts":
        return ByProducts(self.pixels + other.pixels, self.norms + other.norms)

    @property
    def statistics(self) -> SlideStatistics:
        """As the feature file keeps them."""
        return SlideStatistics(
            tissue_pixels=self.pixels.count,
            pixel_mean=self.pixels.mean,
            pixel_std=self.pixels.std,
            norm_patches=self.norms.patches,
            norm_layers=self.norms.layers,
            norm_mean=self.norms.mean,
            norm_var=self.norms.variance,
        )


def no_by_products(layers: dict[str, int]) -> ByProducts:
    """layers: see `NormMoments`."""
    return ByProducts(NO_PIXELS, no_moments(layers))
