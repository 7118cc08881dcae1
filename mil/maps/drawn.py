"""What all forms of one slide's heatmap are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention
from tiling.slides.slide import Slide
from tiling.tissue.thumbnail import Thumbnail, read_thumbnail


@dataclass(frozen=True)
class Drawn:
    """The scores of one slide's patches, the slide behind them, and how they are shown."""

    slide_id: str
    """As the slide table has it; the files are named by it."""
    slide: SlideAttention
    scores: PatchScores
    source: Slide
    provenance: Mapping[str, Any]
    """What the map was made from, as JSON; every form carries it, or can tell whether it has the same."""
    opacity: float
    """Of the map over the tissue, more than 0 and at most 1."""
    annotation: Path | None = None
    """GeoJSON with outlines in level-0 pixels."""
    bounds_l0: tuple[int, int, int, int] | None = None
    """x, y, width, height of the scanner's bounds, where they are the frame of what QuPath opens."""

    @property
    def origin_l0(self) -> tuple[int, int]:
        return self.bounds_l0[:2] if self.bounds_l0 else (0, 0)

    def thumbnail(self, longest_side_px: int) -> Thumbnail:
        """The slide with about so many pixels along its longer side."""
        return read_thumbnail(self.source, max(1.0, max(self.slide.width_l0, self.slide.height_l0) / longest_side_px))
