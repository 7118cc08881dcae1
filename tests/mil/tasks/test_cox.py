"""Cox's likelihood against a loop and scikit-survival, ties included."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from mil.tasks.cox import fit_cox, fit_slope, log_likelihood


def _drawn(seed=0, n=80):
    """Vectors (n, 5) of which two tell the hazard; whole numbers of months, a third censored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * [1, 2, 1, 3, 1] + 4
    died, left = rng.exponential(10 * np.exp(-x[:, 0] + 0.3 * x[:, 1])), rng.uniform(1, 25, size=n)
    return x, np.stack([np.ceil(np.minimum(died, left)), died <= left], axis=1)


def test_the_likelihood_equals_a_loop_over_risk_sets():
    x, followed = _drawn()
    risks, expected = x[:, 0] - 4, 0.0
    for time, event, own in zip(*followed.T, risks, strict=True):
        if event:
            expected += own - np.log(np.exp(risks[followed[:, 0] >= time]).sum())
    assert log_likelihood(risks, followed)[0] == pytest.approx(expected)
    error = check_grad(lambda r: log_likelihood(r, followed)[0], lambda r: log_likelihood(r, followed)[1], risks)
    assert error < 1e-4


def test_late_entries_are_at_risk_after_their_entry_alone():
    x, followed = _drawn(5)
    entry = np.floor(followed[:, 0] * np.random.default_rng(0).choice([0, 0.3, 0.9], size=80)) - 0.5
    late, risks, expected = np.column_stack([followed, entry]), x[:, 0] - 4, 0.0
    for time, event, _, own in zip(*late.T, risks, strict=True):
        if event:
            expected += own - np.log(np.exp(risks[(late[:, 0] >= time) & (entry < time)]).sum())
    assert log_likelihood(risks, late)[0] == pytest.approx(expected)
    assert log_likelihood(risks, followed)[0] != pytest.approx(expected)
    error = check_grad(lambda r: log_likelihood(r, late)[0], lambda r: log_likelihood(r, late)[1], risks)
    assert error < 1e-4


def test_the_ridge_model_equals_scikit_survival():
    x, followed = _drawn(1)
    found = fit_cox(x, followed, (x[:0], followed[:0]))(x)
    z = (x - x.mean(0)) / x.std(0)
    library = CoxPHSurvivalAnalysis(alpha=1e3, ties="breslow", tol=1e-12)
    expected = z @ library.fit(z, Surv.from_arrays(followed[:, 1] > 0, followed[:, 0])).coef_
    assert found == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())


def test_the_penalty_is_chosen_on_the_held_out_part():
    (x, followed), held_out = _drawn(2), _drawn(3)
    risks = fit_cox(x, followed, held_out)(held_out[0])
    truth = held_out[0][:, 0] - 0.3 * held_out[0][:, 1]
    assert np.corrcoef(risks, truth)[0, 1] > 0.8 and np.ptp(risks) > 1
    weak = fit_cox(x, followed, (held_out[0][:0], held_out[1][:0]))(held_out[0])
    assert log_likelihood(risks, held_out[1])[0] > log_likelihood(weak, held_out[1])[0]


def test_a_slope_undoes_what_was_multiplied_and_has_its_limits():
    rng = np.random.default_rng(4)
    risks = rng.normal(size=4000)
    followed = np.stack([rng.exponential(np.exp(-risks)), np.ones(4000)], axis=1)
    assert fit_slope(2 * risks, followed, 2.0) == pytest.approx(0.5, abs=0.03)
    assert fit_slope(risks / 10, followed, 2.0) == pytest.approx(2.0, abs=1e-3)
    assert fit_slope(np.empty(0), np.empty((0, 2)), 2.0) == 1
