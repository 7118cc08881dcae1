"""DeLong's standard errors: the published example, the sum over all pairs, and patients with several rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mil.metrics.delong import areas, delong_interval, delong_p

# Patients with ovarian cancer of DeLong, DeLong, Clarke-Pearson 1988: albumin, total protein, K-G score, outcome. Data
# and results from SAS/STAT User's Guide, PROC LOGISTIC, example "Comparing Receiver Operating Characteristic Curves".
PUBLISHED = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


@pytest.fixture
def published():
    """Scores (3, 43) of albumin, K-G score and total protein; who gained from surgery (43,); patients (43,)."""
    table = np.array(PUBLISHED.split(), float).reshape(-1, 4)
    scores = np.stack([table[:, 0], 10 - table[:, 2], table[:, 1]])
    return scores, table[:, 3] == 1, np.arange(len(table)).astype(str)


def test_the_published_example(published):
    scores, truth, patients = published
    got = areas(scores, truth, patients)
    assert got.values == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(got.covariance)) == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
    interval = delong_interval(scores[0], truth, patients)
    assert (interval["low"], interval["high"]) == pytest.approx((0.5549, 0.9182), abs=5e-5)
    contrasts = np.array([[1, -1, 0], [0, -1, 1]])
    differences, covariance = contrasts @ got.values, contrasts @ got.covariance @ contrasts.T
    assert differences == pytest.approx([0.0108, -0.0780], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0953, 0.1046], abs=5e-5)
    assert differences @ np.linalg.solve(covariance, differences) == pytest.approx(2.5340, abs=5e-5)
    assert delong_p(scores[0], scores[1], truth, patients) == pytest.approx(0.9102, abs=5e-5)
    assert delong_p(scores[2], scores[1], truth, patients) == pytest.approx(0.4561, abs=5e-5)


def _by_all_pairs(scores, truth, patients):
    """AUROC and variance from the matrix of all pairs, patient by patient as Obuchowski 1997 writes it."""
    positives, negatives = scores[truth], scores[~truth]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    value, m, n = wins.mean(), len(positives), len(negatives)
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    names = sorted(set(patients))
    a = np.array([(v10[patients[truth] == p] - value).sum() for p in names])
    b = np.array([(v01[patients[~truth] == p] - value).sum() for p in names])
    i10, i01, i = len(set(patients[truth])), len(set(patients[~truth])), len(names)
    s10, s01, s11 = i10 / (i10 - 1) * a @ a / m, i01 / (i01 - 1) * b @ b / n, i / (i - 1) * a @ b
    return value, s10 / m + s01 / n + 2 * s11 / (m * n)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 40), levels=st.integers(2, 9), several=st.booleans())
def test_midranks_give_what_all_pairs_give(seed, n, levels, several):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2 == 1
    scores = rng.integers(levels, size=n) + 0.5 * truth
    patients = (rng.integers(n // 2, size=n) if several else np.arange(n)).astype(str)
    if min(len(set(patients[truth])), len(set(patients[~truth]))) < 2:
        return
    value, variance = _by_all_pairs(scores, truth, patients)
    got = areas(scores[None], truth, patients)
    assert got.values[0] == pytest.approx(value, abs=1e-12) == roc_auc_score(truth, scores)
    assert got.covariance[0, 0] == pytest.approx(variance, abs=1e-12)


def test_copies_of_a_case_do_not_make_the_interval_narrower():
    rng = np.random.default_rng(0)
    truth, patients = np.arange(40) % 2 == 1, np.arange(40).astype(str)
    scores = rng.normal(size=40) + truth
    once = areas(scores[None], truth, patients).covariance[0, 0]
    five = areas(np.tile(scores, 5)[None], np.tile(truth, 5), np.tile(patients, 5)).covariance[0, 0]
    naive = areas(np.tile(scores, 5)[None], np.tile(truth, 5), np.arange(200).astype(str)).covariance[0, 0]
    assert five == pytest.approx(once, rel=1e-9) and naive < once / 4


def test_the_interval_covers_the_true_auroc():
    rng = np.random.default_rng(1)
    true, covered = norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(400):  # 30 patients with two slides each that share half of their noise
        truth = np.repeat(np.arange(30) % 2 == 1, 2)
        scores = (np.repeat(rng.normal(size=30), 2) + rng.normal(size=60)) / np.sqrt(2) + truth
        found = delong_interval(scores, truth, np.repeat(np.arange(30), 2).astype(str))
        covered += found["low"] <= true <= found["high"]
    assert 0.91 < covered / 400 < 0.98


def test_equal_scores_and_single_classes():
    truth, patients = np.array([False, True, False, True]), np.array(list("abcd"))
    scores = np.array([0.1, 0.9, 0.6, 0.5])
    assert delong_p(scores, scores, truth, patients) == 1
    assert delong_interval(scores, np.ones(4, bool), patients) == {"value": None, "low": None, "high": None}
    assert delong_interval(scores[:2], truth[:2], patients[:2]) == {"value": 1, "low": None, "high": None}
    with pytest.raises(ValueError, match="both classes"):
        areas(scores[None], np.zeros(4, bool), patients)
