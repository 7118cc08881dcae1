"""Pen marks on a thumbnail: felt-tip ink is beyond what stains can be, over the width of a stroke."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.morphology import remove_small_objects

from tiling.tissue.glass import areas_touching

_AVERAGED_UM = 16.0  # side of the square that colour is averaged over: two cells, so no nucleus stands alone
_STROKE_UM = 60.0  # narrower is an edge of a coverslip, or a fold
_AREA_UM2 = 10_000.0  # of sure ink; a dot is larger
_EDGE_PX = 1  # how far the pale edge of a stroke reaches
_STAIN_SHARE = 0.2  # of the scanned area; more ink than that, and hardly anything else, is no ink
_PALEST = 0.06  # density of the palest ink that is looked for, in any channel


def find_pen(density: NDArray[np.float32], unseen: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Ink (H, W) bool: what is surely ink over a stroke's width, and fainter ink that goes on from there.

    In doubt, it is tissue. Works on averages over about 16 µm, so that the same rules hold at any finer scale.
    density: (3, H, W), optical density relative to glass (natural logarithm).
    unseen: (H, W) padding and black borders. mpp: µm per pixel.
    """
    factor = max(1, min(round(_AVERAGED_UM / mpp), *unseen.shape))
    averaged = np.stack([np.asarray(Image.fromarray(channel).reduce(factor)) for channel in density])
    covered = np.asarray(Image.fromarray(unseen.astype(np.float32)).reduce(factor)) > 0.5
    ink = _strokes(averaged, covered, mpp * factor)
    height, width = unseen.shape
    enlarged = ink.repeat(factor, 0)[:height].repeat(factor, 1)[:, :width]
    return np.asarray(maximum_filter(enlarged, 2 * _EDGE_PX + 1) & ~unseen)


def _strokes(density: NDArray[np.float32], unseen: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    sure, likely = _ink(density, unseen)
    sure = _wide(sure, max(3, round(_STROKE_UM / mpp) | 1))
    sure = np.asarray(remove_small_objects(sure, max_size=round(_AREA_UM2 / mpp**2)))
    ink = areas_touching(likely, sure)
    if ink.sum() > _STAIN_SHARE * (~unseen).sum() and ink.sum() > 0.9 * ((density[0] > 0.2) & ~unseen).sum():
        return np.zeros_like(ink)  # nearly all that is dark to red on a full slide: a blue or green stain
    return ink


def _wide(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """(H, W) what a square of `side` pixels fits into; beyond the picture there is nothing."""
    inner = minimum_filter(np.pad(mask, side), side)
    return np.asarray(maximum_filter(inner, side)[side:-side, side:-side])


def _ink(density: NDArray[np.float32], unseen: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where (H, W) the colour is surely ink, and where it is ink if it touches sure ink.

    Set by the stains of Ruifrok & Johnston 2001 (haematoxylin .65 .70 .29, eosin .07 .99 .11, DAB .27 .57 .78), by H&E
    and IHC of three scanners, and by half of 160 slides with felt-tip (tests/benchmarks/accuracy/accuracy_pen.py).
    """
    coloured = (density.max(0) >= _PALEST) & ~unseen
    r, g, b = density[:, coloured]  # each (n,)
    blue = r - g  # nuclei absorb green about as much as red: at most 0.15
    green = np.minimum(r, b) - g  # no stain spares green: at most 0.04
    red = np.minimum(g, b) - 1.5 * r  # eosin, blood and DAB reach 0.8
    # Black ink absorbs red and blue as well, whatever tissue lies under it. Nuclei spare blue and eosin spares red:
    # the densest tissue at hand reaches 0.47. DAB absorbs blue more than green. Beyond 2.5 a scanner sees no green.
    black = np.minimum(r, b) - 0.4 * np.minimum(g, 2.5) - 1.5 * (b - g).clip(min=0)
    over_tissue = r / g.clip(min=0.1)  # blue ink on nuclei: denser than these, red as much as green
    surely = (blue >= 0.35) | (green >= 0.12) | (red >= 1.0) | (black >= 0.55) | ((over_tissue >= 0.9) & (r >= 1.1))
    likely = (
        (blue >= 0.18)
        | (green >= 0.06)
        | (red >= 0.65)
        | (black >= 0.2)
        | ((over_tissue >= 0.75) & (r >= 0.8) & (b <= 0.7 * g))
    )
    sure, faint = np.zeros((2, *unseen.shape), bool)
    sure[coloured], faint[coloured] = surely, likely
    return sure, faint
