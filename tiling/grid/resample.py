"""A patch's pixels at its scale: a level as it is, or the next finer one averaged by area."""

import math

import numpy as np
from PIL import Image
from scipy import sparse

from tiling.grid.scale import TOLERANCE, Scale
from tiling.slides.slide import Pixels, Slide


def read_patch(slide: Slide, scale: Scale, x_l0: int, y_l0: int) -> Pixels:
    """One patch (P, P, 3) uint8 RGB whose corner is at level-0 (x, y)."""
    x, y = x_l0 / scale.downsample, y_l0 / scale.downsample  # in pixels as they are read
    size = scale.patch_size_l0 / scale.downsample
    px = scale.patch_size_px
    if abs(size - px) < TOLERANCE * px:
        return slide.read(scale.level, round(x), round(y), px, px, scale.reduction)
    left, top = math.floor(x), math.floor(y)
    side = math.ceil(max(x - left, y - top) + size)
    region = slide.read(scale.level, left, top, side, side, scale.reduction)
    return area_average(region, x - left, y - top, size, px)


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
