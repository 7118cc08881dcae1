"""A patch's pixels at its scale: a level as it is, or the next finer one averaged by area."""

import math

import numpy as np
from PIL import Image
from scipy import sparse

from tiling.grid.scale import TOLERANCE, Scale
from tiling.slides.slide import Colour, Pixels, Slide

_ROUNDING = 1e-6


def read_patch(slide: Slide, scale: Scale, x_l0: int, y_l0: int, padding: Colour | None = None) -> Pixels:
    """One patch (P, P, 3) uint8 RGB whose corner is at level-0 (x, y).

    padding: its colour where it sticks out over the slide; None: what the reader gives there.
    """
    x, y, size = _square(scale, x_l0, y_l0)
    px = scale.patch_size_px
    if size == px:
        return _read_padded(slide, scale, (int(x), int(y)), px, padding)
    left, top = math.floor(x), math.floor(y)
    side = math.ceil(max(x - left, y - top) + size)
    return area_average(_read_padded(slide, scale, (left, top), side, padding), x - left, y - top, size, px)


def on_slide(slide: Slide, scale: Scale, x_l0: int, y_l0: int) -> tuple[slice, slice]:
    """Rows and columns of a patch's pixels that show the slide and no padding."""
    x, y, size = _square(scale, x_l0, y_l0)
    width, height = _size_as_read(slide, scale)

    def within(start: float, length: int) -> slice:
        pixel = size / scale.patch_size_px
        first, last = max(0.0, -start) / pixel, max(0.0, min(size, length - start)) / pixel
        return slice(math.ceil(first - _ROUNDING), math.floor(last + _ROUNDING))

    return within(y, height), within(x, width)


def _square(scale: Scale, x_l0: int, y_l0: int) -> tuple[float, float, float]:
    """x, y and side of a patch in pixels as they are read: whole numbers where a level is taken as it is."""
    x, y, size = (n / scale.downsample for n in (x_l0, y_l0, scale.patch_size_l0))
    if abs(size - scale.patch_size_px) < TOLERANCE * scale.patch_size_px:
        return round(x), round(y), scale.patch_size_px
    return x, y, size


def _size_as_read(slide: Slide, scale: Scale) -> tuple[int, int]:
    """Pixels as they are read that lie wholly on the slide (width, height)."""
    width, height = slide.level_sizes[scale.level]
    return width // scale.reduction, height // scale.reduction


def _read_padded(slide: Slide, scale: Scale, corner: tuple[int, int], side: int, padding: Colour | None) -> Pixels:
    """A square of pixels as they are read, `padding` where they do not lie wholly on the slide."""
    pixels = slide.read(scale.level, *corner, side, side, scale.reduction)
    if padding is None:
        return pixels
    (left, top), (width, height) = corner, _size_as_read(slide, scale)
    seen = slice(max(0, -top), max(0, height - top)), slice(max(0, -left), max(0, width - left))
    if pixels[seen].shape == pixels.shape:
        return pixels
    padded = np.full_like(pixels, padding)
    padded[seen] = pixels[seen]
    return padded


def area_average(region: Pixels, x: float, y: float, size: float, out_px: int) -> Pixels:
    """The square of side `size` at (x, y) of `region`, each output pixel the exact mean of what it covers."""
    factor = size / out_px
    if x == y == 0 and factor == int(factor) and region.shape[:2] == (int(size), int(size)):
        return np.asarray(Image.fromarray(region).reduce(int(factor)))
    weights_x = _area_weights(x, size, out_px, region.shape[1])  # P, W
    weights_y = _area_weights(y, size, out_px, region.shape[0])  # P, H
    rows = weights_y @ region.reshape(region.shape[0], -1).astype(np.float32)  # P, W*3
    columns = rows.reshape(out_px, region.shape[1], 3).transpose(1, 0, 2).reshape(region.shape[1], -1)
    out = (weights_x @ columns).reshape(out_px, out_px, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.rint(out).clip(0, 255).astype(np.uint8))


def _area_weights(start: float, size: float, out_px: int, in_px: int) -> sparse.csr_matrix:
    """(out_px, in_px) share of each input pixel in each output pixel; rows sum to 1."""
    edges = start + np.arange(out_px + 1) * (size / out_px)
    first = np.floor(edges[:-1]).astype(int)
    taps = int(np.ceil(size / out_px)) + 1
    columns = first[:, None] + np.arange(taps)  # out_px, taps
    covered = np.minimum(columns + 1, edges[1:, None]) - np.maximum(columns, edges[:-1, None])
    weights = np.clip(covered, 0, None) * (columns < in_px)
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(out_px), taps)
    entries = (weights.ravel().astype(np.float32), (rows, np.minimum(columns, in_px - 1).ravel()))
    return sparse.csr_matrix(entries, shape=(out_px, in_px))
