"""What a thumbnail shows where there is no tissue: padding, dark borders, and glass of whatever colour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import label, maximum_filter

from tiling.slides.slide import Colour, Pixels

_DARK = 50  # brightest channel of black borders and of the shadow at the edge of the glass
_SHADOW_PX = 5  # side of the square by which black grows over its grey edge
_SLENDER = 4  # times as long as deep are borders at least; strokes that end at the frame reach 3
_PADDING_SHARE = 0.02  # of the picture's frame that a colour must take to be padding
_SMOOTH = 2  # grey levels between fine and coarse blur; glass is below, tissue is textured
_GLASS_SHARE = 0.005  # of the scanned pixels that look like glass; below, the slide shows none
_WHITE = 240.0  # glass of a slide that shows none
_MODE_SHARE = 0.2  # of the largest mode; the brightest mode with so many pixels is glass, darker ones shadows


@dataclass(frozen=True)
class Background:
    """padding, dark: (H, W) bool. density: (3, H, W) float32, natural optical density relative to the glass, 0 up.

    glass: its colour.
    """

    padding: NDArray[np.bool_]
    dark: NDArray[np.bool_]
    density: NDArray[np.float32]
    glass: Colour


def find_background(pixels: Pixels) -> Background:
    """Separate what is no scanned glass, then express the rest relative to the glass of this slide."""
    fine = np.asarray(Image.fromarray(pixels).filter(ImageFilter.BoxBlur(1)))
    padding = _padding(pixels)
    dark = _dark(pixels, padding)
    bright = padding & (pixels[..., 1] > _DARK)
    fallback = pixels[bright].mean(0) if bright.any() else np.full(3, _WHITE)
    glass = _glass_colour(fine[::3, ::3], ~(padding | dark)[::3, ::3], fallback)
    levels = np.arange(256, dtype=np.float32)[:, None]
    table = np.log((glass + 1) / (levels + 1)).clip(min=0).astype(np.float32)  # 256, 3
    density = np.stack([table[:, i].take(fine[..., i]) for i in range(3)])
    red, green, blue = np.rint(glass).astype(int).tolist()
    return Background(padding, dark, density, (red, green, blue))


def _padding(pixels: Pixels) -> NDArray[np.bool_]:
    """(H, W) pixels of one constant colour that fills around and between scanned areas, as MRXS files have it.

    Scanned glass has noise; padding has none. Its colours are those that stand along the picture's frame.
    """
    r, g, b = (pixels[..., i].astype(np.uint32) for i in range(3))
    code = (r << 16) | (g << 8) | b
    flat = np.ones(code.shape, bool)  # equal to its four neighbours
    below, right = code[1:] == code[:-1], code[:, 1:] == code[:, :-1]
    flat[1:] &= below
    flat[:-1] &= below
    flat[:, 1:] &= right
    flat[:, :-1] &= right
    frame = np.concatenate([code[0][flat[0]], code[-1][flat[-1]], code[:, 0][flat[:, 0]], code[:, -1][flat[:, -1]]])
    colours, counts = np.unique(frame, return_counts=True)
    padding = np.zeros(code.shape, bool)
    for colour in colours[counts >= _PADDING_SHARE * 2 * sum(code.shape)]:
        of_colour = code == colour
        padding |= np.asarray(maximum_filter(flat & of_colour, 3)) & of_colour
    return np.asarray(padding)


def _dark(pixels: Pixels, padding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) black areas that lie along the picture's frame or the padding. Other black is ink or tissue.

    A stroke that ends at the frame touches it over its width alone, a border over its length.
    """
    dark = (pixels[..., 0] <= _DARK) & (pixels[..., 1] <= _DARK) & (pixels[..., 2] <= _DARK)
    if not dark.any():
        return dark
    outside = np.asarray(maximum_filter(padding, 3))
    outside[[0, -1]] = outside[:, [0, -1]] = True
    areas, count = label(dark)
    area, contact = (np.bincount(areas[where], minlength=count + 1).astype(float) for where in (dark, dark & outside))
    along = (contact > 0) & (contact**2 >= _SLENDER * area)
    return np.asarray(maximum_filter(along[areas], _SHADOW_PX))


def areas_touching(mask: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) the connected areas of `mask` in which a seed lies."""
    areas, count = label(mask)
    kept = np.zeros(count + 1, bool)
    kept[areas[seeds & mask]] = True
    return np.asarray(kept[areas])


def _glass_colour(pixels: Pixels, scanned: NDArray[np.bool_], fallback: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) RGB of the empty glass: the brightest mode of what is smooth, and not as pink, blue or brown as stains.

    fallback: the answer for a slide that shows no glass.
    """
    coarse = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)))
    r, g, b = (coarse[..., i].astype(np.int32) for i in range(3))
    smooth = np.abs(pixels.astype(np.int16) - coarse).max(2) <= _SMOOTH
    untinted = (200 * g >= 191 * ((r + b) // 2)) & (20 * r >= 17 * b) & (10 * b >= 7 * r) & (g >= 110)
    like_glass = scanned & smooth & untinted
    if like_glass.sum() <= _GLASS_SHARE * scanned.sum():
        return fallback
    counts = np.bincount(g[like_glass], minlength=256).astype(float)
    counts = np.convolve(counts, np.ones(5), "same")
    brightest = np.flatnonzero(counts >= _MODE_SHARE * counts.max())[-1]
    while counts[brightest - 1] > counts[brightest]:
        brightest -= 1
    return np.asarray(np.median(pixels[like_glass & (np.abs(g - brightest) <= 3)], axis=0))
