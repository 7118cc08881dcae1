"""The ratio of a site to the others by hand."""

import numpy as np
import pytest

from mil.diagnosis.numbers.site_ratio import site_ratios


def test_the_ratio_of_a_site_is_that_of_medians_and_covers_patients():
    values, sites = np.array([2.0, 4, 8, 1, 1, 2, np.nan]), np.array(["a", "a", "a", "b", "b", "b", "b"])
    patients = np.array(["1", "1", "1", "4", "5", "6", "7"])
    first, second = site_ratios(values, sites, patients, 0)
    assert (first.site, first.slides, second.slides) == ("a", 3, 3)
    assert first.ratio["value"] == pytest.approx(4) and second.ratio["value"] == pytest.approx(1 / 4)
    assert first.ratio["low"] >= 2 - 1e-9 and first.ratio["high"] <= 4 + 1e-9  # one patient is all of the site a
    assert first.beyond(3.9, 1.9) and not first.beyond(4.1, 1.9) and not first.beyond(3.9, 2.1)
    third = site_ratios(np.array([1.0, 1, 2]), np.array(["a", "b", "c"]), np.array(["1", "2", "3"]), 0)
    assert third[0].site == "c" and third[0].ratio["value"] == pytest.approx(2)
    assert site_ratios(values[:3], sites[:3], patients[:3], 0) == []
