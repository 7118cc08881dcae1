"""Slides through OpenSlide: every vendor format that it opens."""

from pathlib import Path

import numpy as np
import openslide

from tiling.errors import SlideError
from tiling.slide import Pixels


class OpenSlideReader:
    """A `Slide` over `openslide.OpenSlide`. Transparent pixels take the slide's background colour."""

    backend = "openslide"

    def __init__(self, path: Path) -> None:
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise SlideError("OpenSlide: not a format that it knows") from None
        except openslide.OpenSlideError as error:
            raise SlideError(f"OpenSlide: {error}") from error
        self.path = path
        self.level_sizes = self._slide.level_dimensions
        self.downsamples = self._slide.level_downsamples
        properties = self._slide.properties
        mpp = (properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y))
        self.mpp = (float(mpp[0]), float(mpp[1])) if mpp[0] and mpp[1] else None
        self.mpp_source = "openslide"
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(colour), np.uint8)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        corner_l0 = (round(x * self.downsamples[level]), round(y * self.downsamples[level]))
        try:
            rgba = np.asarray(self._slide.read_region(corner_l0, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: damaged at level {level}, x {x}, y {y} ({error})") from error
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() == 255:
            return rgb
        share = alpha.astype(np.float32) / 255
        return np.rint(rgb * share + self._background * (1 - share)).astype(np.uint8)

    def close(self) -> None:
        self._slide.close()
