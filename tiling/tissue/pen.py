"""Pen marks on a thumbnail: felt-tip ink is beyond what stains can be, evenly, over the width of a stroke."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, uniform_filter
from skimage.morphology import remove_small_objects

from tiling.tissue.glass import areas_touching

_STROKE_UM = 100.0  # ink must be solid over a square of this side
_SOLID = 0.85  # share of such a square
_AREA_UM2 = 50_000.0  # smaller marks are left to the tissue
_STAIN_SHARE = 0.2  # of the scanned area; more ink than that, and hardly anything else, is no ink
_PALEST = 0.06  # density of the palest ink that is looked for, in any channel
_EDGE_PX = 2  # how far the pale edge of a stroke reaches


def find_pen(density: NDArray[np.float32], unseen: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Ink (H, W) bool: what is surely ink and even over a stroke's width, and fainter ink that goes on from there.

    In doubt, it is tissue. density: (3, H, W), optical density relative to glass (natural logarithm).
    unseen: (H, W) padding and black borders. mpp: µm per pixel.
    """
    sure, faint = _ink(density, unseen)
    side = max(3, round(_STROKE_UM / mpp))
    if not sure.any():
        return sure
    solid = uniform_filter(sure.astype(np.float32), side) >= _SOLID
    sure &= maximum_filter(solid, side)
    sure = np.asarray(remove_small_objects(sure, max_size=round(_AREA_UM2 / mpp**2)))
    ink = areas_touching(sure | faint, sure)
    if ink.sum() > _STAIN_SHARE * (~unseen).sum() and ink.sum() > 0.9 * ((density[0] > 0.2) & ~unseen).sum():
        return np.zeros_like(ink)  # nearly all that is dark to red on a full slide: a blue or green stain
    return np.asarray(maximum_filter(ink, 2 * _EDGE_PX + 1) & ~unseen)


def _ink(density: NDArray[np.float32], unseen: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where (H, W) the colour is surely ink, and where it is ink if it touches sure ink.

    Set by the stains of Ruifrok & Johnston 2001 (haematoxylin .65 .70 .29, eosin .07 .99 .11, DAB .27 .57 .78) and
    by H&E and IHC of three scanners at 4 and 8 µm per pixel.
    """
    coloured = (density.max(0) >= _PALEST) & ~unseen
    r, g, b = density[:, coloured]  # each (n,)
    blue = r - g  # nuclei absorb green about as much as red: at most 0.15
    green = np.minimum(r, b) - g  # no stain spares green: at most 0.04
    red = np.minimum(g, b) - 1.5 * r  # eosin, blood and DAB reach 0.8
    surely = (blue >= 0.35) | (green >= 0.12) | (red >= 1.0)
    surely |= (r >= 0.9 * g) & (g >= 1.2)  # black, navy: denser than nuclei averaged over 8 µm, red as much as green
    surely |= (np.maximum(abs(r - g), abs(b - g)) <= 0.1 * g) & (g >= 0.6)  # thin black: no stain is grey
    likely = (blue >= 0.18) | (green >= 0.06) | (red >= 0.65)
    likely |= (r >= 0.7 * g) & (g >= 1.7)
    sure, faint = np.zeros((2, *unseen.shape), bool)
    sure[coloured], faint[coloured] = surely, likely
    return sure, faint
