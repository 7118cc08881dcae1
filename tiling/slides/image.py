"""JPEG and PNG images as slides of one level: dermoscopy, TMA cores, exported regions."""

import threading
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tiling.jobs.errors import SlideError
from tiling.slides.slide import NO_SUBSAMPLING, Pixels

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
        Image.MAX_IMAGE_PIXELS = None  # the limit is checked below, with a remedy
        try:
            self._image = Image.open(path, formats=("JPEG", "PNG"))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            reason = "not JPEG or PNG" if isinstance(error, UnidentifiedImageError) else str(error)
            raise SlideError(f"Pillow: {reason}") from error
        if self._image.mode not in _COLOUR_MODES:
            raise SlideError(f"Pillow: an image of mode {self._image.mode}, expected 8-bit RGB")
        width, height = self._image.size
        if width * height > _PIXELS_MAX:
            raise SlideError(
                f"Pillow: {width} × {height} px is too large to be read at once; convert it to a tiled TIFF"
            )
        self.path = path
        self.level_sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self._whole: Image.Image | None = None
        self._lock = threading.Lock()

    def _decode(self) -> Image.Image:
        try:
            if self._image.mode == "RGB":
                return self._image.convert("RGB")
            opaque = self._image.convert("RGBA")
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideError(f"{self.path}: the image is damaged ({error})") from error
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")

    def read(self, level: int, x: int, y: int, width: int, height: int, reduction: int = 1) -> Pixels:
        box = (x * reduction, y * reduction, (x + width) * reduction, (y + height) * reduction)
        with self._lock:
            whole = self._whole = self._whole or self._decode()
        if min(box) >= 0 and box[2] <= whole.width and box[3] <= whole.height:
            region = whole.crop(box)
        else:
            region = Image.new("RGB", (width * reduction, height * reduction), "white")
            region.paste(whole, (-box[0], -box[1]))
        return np.asarray(region.reduce(reduction))

    def close(self) -> None:
        self._image.close()
