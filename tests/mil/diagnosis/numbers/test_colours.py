"""Colours of a cohort from statistics of its slides, against all pixels."""

import numpy as np
from drawn_cohort import PATCHES, SLIDES, inputs_of

from mil.diagnosis.numbers.colours import colours_of


def test_colours_are_those_of_all_pixels_and_averaging_deviations_is_less(drawn):
    inputs = inputs_of(drawn, sample_patches=SLIDES * 3 * PATCHES)
    pixels = inputs.sample.pixels.reshape(-1, 3) / 255
    found = colours_of(inputs.statistics)
    assert np.allclose(found.mean, pixels.mean(0)) and np.allclose(found.std, pixels.std(0))
    each = [inputs.sample.pixels[inputs.sample.slides == i].reshape(-1, 3).std(0) / 255 for i in range(12)]
    assert np.allclose(found.averaged_std, np.mean(each, 0)) and (found.averaged_std < found.std).all()
