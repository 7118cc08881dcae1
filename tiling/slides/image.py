"""JPEG and PNG images as slides of one level: dermoscopy, TMA cores, exported regions."""

import functools
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tiling.jobs.errors import SlideError
from tiling.slides.slide import NO_SUBSAMPLING, Pixels, read_reduced

_PIXELS_MAX = 2**28  # such an image is decoded as a whole: 0.8 GB
_COLOUR_MODES = ("RGB", "RGBA", "P")


class ImageReader:
    """A `Slide` over Pillow. The image has no scale: its resolution tag speaks of printing, not of tissue.

    Coordinates are those of the stored pixels; an EXIF orientation is not applied.
    """

    backend = "image"
    mpp: tuple[float, float] | None = None
    mpp_source = ""
    downsamples: tuple[float, ...] = (1.0,)
    subsampling: tuple[str, ...] = (NO_SUBSAMPLING,)

    def __init__(self, path: Path) -> None:
        self._image = _open(path)
        if self._image.mode not in _COLOUR_MODES:
            raise SlideError(f"Pillow: an image of mode {self._image.mode}, expected 8-bit RGB")
        width, height = self._image.size
        if width * height > _PIXELS_MAX:
            raise SlideError(
                f"Pillow: {width} × {height} px is too large to be read at once; convert it to a tiled TIFF"
            )
        self.path = path
        self.level_sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self._whole: Pixels | None = None
        self._lock = threading.Lock()

    def _decode(self) -> Pixels:
        try:
            if self._image.mode == "RGB" and "transparency" not in self._image.info:
                return np.asarray(self._image)
            opaque = self._image.convert("RGBA")
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideError(f"{self.path}: the image is damaged ({error})") from error
        return np.asarray(Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB"))

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        if reduction > 1:
            return read_reduced(functools.partial(self.read, level), x, y, width, height, reduction)
        with self._lock:
            if self._whole is None:
                self._whole = self._decode()
        inside = self._whole[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
        if inside.shape[:2] == (height, width):
            return np.ascontiguousarray(inside)
        region = np.full((height, width, 3), 255, np.uint8)
        region[max(0, -y) :, max(0, -x) :][: inside.shape[0], : inside.shape[1]] = inside
        return region

    def close(self) -> None:
        self._image.close()


def _open(path: Path) -> ImageFile:
    """Not by `Image.open`, whose limit on the size is lower than ours, and one for the whole process."""
    for kind in (JpegImageFile, PngImageFile):
        try:
            return kind(path)
        except SyntaxError:  # not of this kind
            continue
        except (OSError, ValueError) as error:
            raise SlideError(f"Pillow: {error}") from error
    raise SlideError("Pillow: not JPEG or PNG")
