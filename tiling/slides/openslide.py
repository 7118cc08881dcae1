"""Slides through OpenSlide: every vendor format that it opens."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

_TILE_PX_MAX = 16_384  # OpenSlide ends the process where it cannot have the memory for a tile


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
        tile = max(
            int(self._slide.properties.get(f"openslide.level[{level}].tile-{side}", 0))
            for level in range(self._slide.level_count)
            for side in ("width", "height")
        )
        if tile > _TILE_PX_MAX:
            self._slide.close()
            raise SlideError(f"OpenSlide: tiles of {tile} px a side, expected at most {_TILE_PX_MAX}")
        self.path = path
        self.level_sizes = self._slide.level_dimensions
        self.downsamples = self._slide.level_downsamples
        properties = self._slide.properties
        self.mpp = _mpp(properties)
        self.mpp_source = "DICOM" if properties.get(openslide.PROPERTY_NAME_VENDOR) == "dicom" else "openslide"
        self.subsampling: tuple[str, ...] = (NO_SUBSAMPLING,) * len(self.level_sizes)
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(colour)
        self._background = (red, green, blue, 255)

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        if reduction > 1:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, reduction)
        pixel_l0 = self.downsamples[level]
        corner_l0 = (round(x * pixel_l0), round(y * pixel_l0))
        try:
            image = self._slide.read_region(corner_l0, level, (width, height))
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: damaged at level {level}, x {x}, y {y} ({error})") from error
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, self._background), image)
        return np.asarray(image.convert("RGB"))

    def close(self) -> None:
        self._slide.close()


def _mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """µm per pixel in x and y; None where the file does not say it, or not as numbers."""
    try:
        return float(properties[openslide.PROPERTY_NAME_MPP_X]), float(properties[openslide.PROPERTY_NAME_MPP_Y])
    except (KeyError, ValueError):
        return None


def bounds_of(path: Path) -> tuple[int, int, int, int] | None:
    """Where the scanner saw tissue: x, y, width, height in level-0 pixels; None where the file does not say it.

    QuPath shows only this part of a slide and counts pixels from its corner; this program counts from the slide's.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
            sizes = (openslide.PROPERTY_NAME_BOUNDS_WIDTH, openslide.PROPERTY_NAME_BOUNDS_HEIGHT)
            x, y, width, height = (int(slide.properties[name]) for name in (*names, *sizes))
    except (openslide.OpenSlideError, OSError, KeyError, ValueError):
        return None
    return x, y, width, height
