"""A tissue mask drawn by the user, on the grid of the thumbnail: GeoJSON polygons or a PNG."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.jobs.errors import SlideError
from tiling.tissue.polygons import rasterise, read_polygons

_ASPECT_TOLERANCE = 0.01
_MODES = ("1", "L", "P", "RGB", "RGBA")


def read_user_mask(
    path: Path, shape: tuple[int, int], width_l0: int, height_l0: int, downsample: float
) -> NDArray[np.bool_]:
    """Tissue (H, W) bool as `path` says. Raises SlideError where the file cannot be this slide's mask.

    path: `.geojson` or `.json` with polygons in level-0 pixels (holes count), or a `.png` of the whole slide at
    any size: pixels that are not 0 (index 0 with a palette), nor fully transparent, are tissue.
    shape, downsample: of the thumbnail; one of its pixels is tissue where the mask is at its centre.
    """
    suffix = path.suffix.lower()
    if suffix in (".geojson", ".json"):
        mask = rasterise(read_polygons(path), shape, downsample)
        remedy = "give polygons in level-0 pixels, (0, 0) at the slide's corner"
    elif suffix == ".png":
        mask = _read_png(path, shape, width_l0, height_l0, downsample)
        remedy = "paint tissue in any colour that is not black"
    else:
        raise SlideError(f"{path}: a tissue mask is .geojson, .json or .png, found {suffix or 'no suffix'!r}")
    if not mask.any():
        raise SlideError(
            f"{path}: this tissue mask covers no pixel of the slide ({width_l0} × {height_l0} px at level 0); "
            f"{remedy}, or leave the slide out"
        )
    return mask


def _read_png(
    path: Path, shape: tuple[int, int], width_l0: int, height_l0: int, downsample: float
) -> NDArray[np.bool_]:
    painted = _painted(path, width_l0, height_l0)
    height_px, width_px = painted.shape
    ys, xs = ((np.arange(side) + 0.5) * downsample for side in shape)  # centres in level-0 pixels
    rows = np.minimum(ys * height_px / height_l0, height_px - 1).astype(int)  # the last centre may lie off the slide
    columns = np.minimum(xs * width_px / width_l0, width_px - 1).astype(int)
    return np.asarray(painted[np.ix_(rows, columns)])


def _painted(path: Path, width_l0: int, height_l0: int) -> NDArray[np.bool_]:
    """Pixels (H', W') of the PNG that are marked."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            _require_form(path, image, width_l0, height_l0)
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SlideError(f"{path}: this PNG cannot be read ({error}); save it again, at most 10,000 px wide") from error
    if values.ndim == 2:
        return np.asarray(values != 0)
    return np.asarray((values[..., :3] != 0).any(2) & (values[..., 3:] != 0).all(2))


def _require_form(path: Path, image: Image.Image, width_l0: int, height_l0: int) -> None:
    if image.mode not in _MODES:
        raise SlideError(
            f"{path}: found a PNG of mode {image.mode}, expected one of {', '.join(_MODES)}; "
            "save it with 8 bits per channel or fewer"
        )
    width, height = image.size
    # Sides are rounded to whole pixels, so each scale is known to within a pixel.
    limit = 1 + _ASPECT_TOLERANCE
    if (width - 1) / width_l0 > limit * (height + 1) / height_l0 or (height - 1) / height_l0 > limit * (
        width + 1
    ) / width_l0:
        raise SlideError(
            f"{path}: found a mask of {width} × {height} px, aspect {width / height:.3f}; expected the slide's, "
            f"{width_l0} × {height_l0} px, {width_l0 / height_l0:.3f} within 1 %; save the mask of the whole slide, "
            "neither cropped nor turned"
        )
