"""The fitted curve where its form is known."""

import numpy as np

from mil.diagnosis.numbers.learning_curve import power_law


def test_a_power_law_is_recovered():
    n = np.array([10.0, 20, 40, 80, 160])
    np.testing.assert_allclose(power_law(n, 0.9 - 1.2 * n**-0.7, np.array([320.0])), 0.9 - 1.2 * 320**-0.7, atol=1e-6)
