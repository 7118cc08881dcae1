"""Cells are measured whatever the sharpness."""

import numpy as np
from drawn_cohort import SIDE, phantom_of
from scipy import ndimage

from mil.diagnosis.numbers.cell_size import cell_size_px


def test_cells_are_measured_whatever_the_sharpness():
    patches = phantom_of(0)
    size = np.nanmedian([cell_size_px(p) for p in patches])
    blurred = np.nanmedian([cell_size_px(ndimage.gaussian_filter(p, (1.5, 1.5, 0))) for p in patches])
    zoomed = np.nanmedian([cell_size_px(p) for p in phantom_of(0, l0_px=SIDE)])
    assert abs(blurred / size - 1) < 0.15 and 1.4 < zoomed / size < 2.5
    assert np.isnan(cell_size_px(np.full((64, 64, 3), 240, np.uint8)))
