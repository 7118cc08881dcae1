"""A blurred scanner is found on pixels, and patches are shown as the network gets them."""

import numpy as np
from drawn_cohort import ALL, inputs_of, with_other_patches_of_west
from scipy import ndimage
from skimage.data import immunohistochemistry

from features.encoders import load_encoder
from mil.diagnosis.findings import normalisation, patches, scale
from mil.diagnosis.findings.patches import as_seen


def test_features_of_a_clean_cohort_raise_no_alarm(drawn):
    inputs = inputs_of(drawn)
    found = normalisation.find(inputs)
    assert found.severity == patches.find(inputs).severity == "fine"
    assert found.numbers["difference of stored features from embedded again"]["value"] < 0.01


def test_a_blurred_scanner_is_found_and_no_wrong_scale(drawn, tmp_path):
    blurred = with_other_patches_of_west(drawn, tmp_path, lambda p, _: ndimage.gaussian_filter(p, (0, 1.5, 1.5, 0)))
    inputs = inputs_of(blurred, sample_patches=ALL)
    found = patches.find(inputs)
    assert found.severity == "fault" and found.evidence["blurred_sites"] == ["west"]
    assert scale.find(inputs).severity == "fine"


def test_patches_are_shown_as_the_network_gets_them():
    tile = immunohistochemistry()[None, :256, :256]
    assert np.abs(as_seen(load_encoder("efficientnet-lite0"), tile).astype(int) - tile).max() == 0
