"""Real slides with felt-tip, as thumbnails at any scale, and which of their pixels are surely ink."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt

from tiling.tissue.thumbnail import Thumbnail
from tiling.tissue.tissue import TissueMap, map_tissue

MPP = 20.0  # about; of the thumbnails as they are
_NEAR_PX, _FAR_PX = 7, 12  # from an outline: the pen's line; beyond it
_INK_GREY = 90  # darkest mean of R, G, B that tissue seldom reaches
_BLOCK = 10  # neighbouring files may show the same tissue: they stay on one side


@dataclass(frozen=True)
class PenSlide:
    """A thumbnail (H, W, 3) at mpp µm per pixel; ink, inside: (H, W) bool."""

    name: str
    mpp: float
    pixels: NDArray[np.uint8]
    ink: NDArray[np.bool_]  # dark, along an outline
    inside: NDArray[np.bool_]  # of an outline, off its line

    def mapped(self) -> TissueMap:
        return map_tissue(Thumbnail(self.pixels, 1.0), "otsu", self.mpp)


def pen_slides(folder: Path, half: int, mpp: float = MPP, every: int = 1) -> Iterator[PenSlide]:
    """Each `every`-th of the slides in a half: 0, on which the rules for pen were set, or 1, held out."""
    files = sorted((folder / "thumbnails").glob("*.jpg"))
    for path in [file for i, file in enumerate(files) if i // _BLOCK % 2 == half][::every]:
        number = path.stem.removeprefix("thumbnail_")
        yield _read(path, folder / "outlines" / f"labels_rs_{number}.png", mpp)


def _read(path: Path, outline: Path, mpp: float) -> PenSlide:
    with Image.open(path) as image, Image.open(outline) as drawn:
        size = tuple(round(side * MPP / mpp) for side in image.size)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        area = np.asarray(drawn.convert("RGB"))[..., 1] < 128  # red on white
    edge = area & ~binary_erosion(area, border_value=1)
    near, inside = distance_transform_edt(~edge) <= _NEAR_PX, area & (distance_transform_edt(~edge) > _FAR_PX)
    near, inside = (np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in (near, inside))
    return PenSlide(path.stem, mpp, pixels, near & (pixels.mean(2) < _INK_GREY), inside)
