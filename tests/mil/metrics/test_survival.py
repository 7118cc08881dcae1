"""Figures of survival against loops in float64 and scikit-survival, ties and censoring included."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import CensoredData, chi2, logrank
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import CensoringDistributionEstimator, kaplan_meier_estimator
from sksurv.util import Surv

from mil.metrics.bootstrap import Bootstrap, draw_weights
from mil.metrics.survival import (
    Followed,
    brier_at,
    concordance,
    evaluate_survival,
    followed_of,
    hazard_ratio,
    kaplan_meier_at,
    label_of,
    log_rank,
    predicted_of,
    uncensored,
)

TIMES = (2.5, 4.5, 7.5, 11.5)
BOOTSTRAP = Bootstrap(60, 1)


def _table(seed=0, n=90, ties=True):
    """Risks that tell something; a third is censored; with ties of times, of both kinds, and of risks."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    died, left = rng.exponential(8 * np.exp(-0.8 * risk)), rng.uniform(1, 30, size=n)
    said = risk + rng.normal(size=n)
    time = np.minimum(died, left)
    if ties:
        time, said = np.ceil(time), said.round(1)
    survival = np.exp(-np.outer(np.exp(0.7 * said), np.array(TIMES)) / 10)
    labels = [f"{t!r}{'' if seen else '+'}" for t, seen in zip(time.tolist(), died <= left, strict=True)]
    table = pd.DataFrame({"patient_id": [f"p{i // 2}" for i in range(n)], "label": labels, "risk": said})
    return table.assign(**{f"survival_{t:g}": of for t, of in zip(TIMES, survival.T, strict=True)})


def _censored_after_events(followed):
    """scikit-survival lets no censored row outlive an event of the same time in its weights: so it is moved."""
    time = np.where(followed.event, followed.time, followed.time + 1e-6)
    return Surv.from_arrays(followed.event, time)


def _by_library(table):
    followed, said = followed_of(table), predicted_of(table, TIMES)
    moved = _censored_after_events(followed)
    aucs, _ = cumulative_dynamic_auc(moved, moved, said.risk, TIMES)
    steps, curve = kaplan_meier_estimator(followed.event, followed.time)
    km = np.array([np.r_[1.0, curve][np.searchsorted(steps, t, side="right")] for t in TIMES])
    alike = np.tile(km, (len(table), 1))
    ibs, ibs_km = (integrated_brier_score(moved, moved, of, TIMES) for of in (said.survival, alike))
    return {
        "c_index": concordance_index_censored(followed.event, followed.time, said.risk)[0],
        "c_uno": concordance_index_ipcw(moved, moved, said.risk, tau=TIMES[-1])[0],
        "auc": aucs.mean(),
        "ibs": ibs,
        "ibs_km": ibs_km,
        "ipa": 1 - ibs / ibs_km,
        "hazard_ratio": np.exp(
            CoxPHSurvivalAnalysis(ties="breslow", tol=1e-12)
            .fit((said.risk > 0)[:, None].astype(float), Surv.from_arrays(followed.event, followed.time))
            .coef_[0]
        ),
        **{f"at {t:g}": auc for t, auc in zip(TIMES, aucs, strict=True)},
    }


@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_and_both_ends_of_its_interval_equal_scikit_survival_over_draws(ties):
    """A draw is a table in which a patient's rows stand as often as it was drawn."""
    table = _table(ties=ties)
    found = evaluate_survival(table, TIMES, BOOTSTRAP)
    found |= {f"at {name}": figure for name, figure in found.pop("auc_at").items()}
    weights = draw_weights(table["patient_id"].tolist(), BOOTSTRAP.draws, BOOTSTRAP.seed).astype(int)
    drawn = [_by_library(table.loc[np.repeat(table.index, row)].reset_index(drop=True)) for row in weights]
    assert found.keys() == drawn[0].keys()
    for name, figure in found.items():
        low, high = np.percentile([draw[name] for draw in drawn[1:]], (2.5, 97.5))
        expected = pytest.approx((drawn[0][name], low, high), rel=1e-5)
        assert (figure["value"], figure["low"], figure["high"]) == expected, name


def test_pairs_are_counted_as_harrell_and_uno_say():
    """A double loop over pairs, with the weights against censoring by a loop too."""
    table = _table(3, 40)
    followed, risk = followed_of(table), table["risk"].to_numpy()
    weights = draw_weights(table["patient_id"].tolist(), 4, 0)
    found = concordance(followed, risk, weights, TIMES[-1])
    for row, harrell, uno in zip(weights, *found, strict=True):
        sums = np.zeros((2, 2))
        for i, j in product(range(len(risk)), repeat=2):
            later = followed.time[j] > followed.time[i]
            later |= followed.time[j] == followed.time[i] and not followed.event[j]
            if followed.event[i] and later:
                hit = (risk[i] > risk[j]) + (risk[i] == risk[j]) / 2
                pair = row[i] * row[j]
                sums[0] += pair * hit, pair
                if followed.time[i] < TIMES[-1] and pair:
                    sums[1] += np.array([hit, 1]) * pair / _not_censored_before(followed, row, followed.time[i]) ** 2
        assert (harrell, uno) == pytest.approx(tuple(sums[:, 0] / sums[:, 1]))


def _not_censored_before(followed, row, time):
    chance = 1.0
    for t in np.unique(followed.time[followed.time < time]):
        there = row[(followed.time > t) | ((followed.time == t) & ~followed.event)].sum()
        gone = row[(followed.time == t) & ~followed.event].sum()
        chance *= 1 - gone / there if there else 1
    return chance


def test_brier_scores_equal_a_loop_and_scikit_survival():
    table = _table(4, 50)
    followed, said = followed_of(table), predicted_of(table, TIMES)
    weights = draw_weights(table["patient_id"].tolist(), 3, 0)
    found = brier_at(followed, said.times, said.survival, weights)
    moved = _censored_after_events(followed)
    assert found[0] == pytest.approx(brier_score(moved, moved, said.survival, TIMES)[1])
    for row, scores in zip(weights, found, strict=True):
        for t, time in enumerate(TIMES):
            total = 0.0
            for i in np.flatnonzero(row):
                if followed.time[i] <= time and followed.event[i]:
                    total += row[i] * said.survival[i, t] ** 2 / _not_censored_before(followed, row, followed.time[i])
                elif followed.time[i] > time:
                    chance = _not_censored_before(followed, row, np.nextafter(time, np.inf))
                    total += row[i] * (1 - said.survival[i, t]) ** 2 / chance
            assert scores[t] == pytest.approx(total / row.sum())


def test_curves_equal_scikit_survival():
    followed = followed_of(_table(5))
    ones, times = np.ones((1, 90)), np.unique(followed.time)
    assert kaplan_meier_at(followed, times, ones)[0] == pytest.approx(
        kaplan_meier_estimator(followed.event, followed.time)[1]
    )
    library = CensoringDistributionEstimator().fit(Surv.from_arrays(followed.event, followed.time))
    assert uncensored(followed, ones, times)[1][0] == pytest.approx(library.predict_proba(times))


def test_a_hazard_ratio_without_a_bound_is_a_thousand():
    followed, first = Followed(np.arange(4.0), np.ones(4, bool)), np.arange(4) < 2
    assert hazard_ratio(followed, first, np.ones((1, 4)))[0] == pytest.approx(1000)
    assert hazard_ratio(followed, ~first, np.ones((1, 4)))[0] == pytest.approx(1e-3)


def test_what_is_not_defined_is_nan():
    followed = Followed(np.array([1.0, 2, 3, 4]), np.array([True, True, False, False]))
    ones = np.ones((1, 4))
    assert np.isnan(hazard_ratio(followed, np.array([True, True, False, False]), ones))[0]  # no event in one
    assert np.isnan(concordance(Followed(followed.time, np.zeros(4, bool)), followed.time, ones, 9.0)).all()
    assert concordance(followed, np.array([4.0, 3, 2, 2]), ones, 9.0)[0] == 1


def test_the_log_rank_test_is_scipys():
    followed = followed_of(_table(6))
    high = predicted_of(_table(6), TIMES).risk > 0.3
    groups = [CensoredData.right_censored(followed.time[own], ~followed.event[own]) for own in (high, ~high)]
    assert log_rank(followed, high) == pytest.approx(logrank(*groups).pvalue)
    assert log_rank(followed, np.zeros(90, bool)) == 1


def _late(seed=7, n=60):
    """Rows that came under observation at whole times of their own, many at once, some at 0."""
    rng = np.random.default_rng(seed)
    time = np.ceil(rng.exponential(8, size=n)) + 1
    entry = np.floor(time * rng.choice([0, 0.2, 0.6, 0.9], size=n))
    return Followed(time, rng.random(n) < 0.6, entry), rng.normal(size=n).round(1)


def test_labels_with_a_time_of_entry_are_read_back():
    assert [label_of("12.5", True), label_of("12.5", False, "3")] == ["12.5", "(3,12.5+]"]
    followed = followed_of(pd.DataFrame({"label": ["(3,12.5+]", "(0,4]"]}))
    assert (followed.entry.tolist(), followed.time.tolist()) == ([3, 0], [12.5, 4])
    assert followed.event.tolist() == [False, True] and followed_of(_table()).entry is None


def test_curves_of_late_entries_equal_scikit_survival_and_a_loop():
    followed, _ = _late()
    steps, curve = kaplan_meier_estimator(followed.event, followed.time, time_enter=followed.entry)
    assert kaplan_meier_at(followed, steps, np.ones((1, 60)))[0] == pytest.approx(curve)
    weights = draw_weights([f"p{i // 2}" for i in range(60)], 3, 0)
    for row, found in zip(weights, kaplan_meier_at(followed, steps, weights), strict=True):
        left = 1.0
        for step, value in zip(steps, found, strict=True):
            there = row[(followed.entry < step) & (step <= followed.time)].sum()
            died = row[(followed.time == step) & followed.event].sum()
            left *= 1 - died / there if there else 1
            assert value == pytest.approx(left)


def test_entering_late_is_not_living_long():
    """Of 4,000 with a mean survival of 10, those are seen who live to their entry: the curve stays true."""
    rng = np.random.default_rng(0)
    died, entry = rng.exponential(10, size=4000), rng.uniform(0, 20, size=4000) * (np.arange(4000) % 5 > 0)
    seen = died > entry
    followed, times = Followed(died[seen], np.ones(seen.sum(), bool), entry[seen]), np.array([5.0, 10.0, 20.0])
    ones = np.ones((1, int(seen.sum())))
    assert kaplan_meier_at(followed, times, ones)[0] == pytest.approx(np.exp(-times / 10), abs=0.03)
    taken_as_early = kaplan_meier_at(Followed(followed.time, followed.event), times, ones)[0]
    assert (taken_as_early > np.exp(-times / 10) + 0.1).all()


def test_late_entries_are_compared_where_both_are_at_risk():
    followed, risk = _late()
    weights = draw_weights([f"p{i // 2}" for i in range(60)], 3, 0)
    for row, harrell in zip(weights, concordance(followed, risk, weights, np.inf)[0], strict=True):
        hits = pairs = 0.0
        for i, j in product(range(60), repeat=2):
            later = followed.time[j] > followed.time[i]
            later |= followed.time[j] == followed.time[i] and not followed.event[j]
            if followed.event[i] and later and followed.entry[j] < followed.time[i]:
                pairs += row[i] * row[j]
                hits += row[i] * row[j] * ((risk[i] > risk[j]) + (risk[i] == risk[j]) / 2)
        assert harrell == pytest.approx(hits / pairs)


def test_log_rank_and_hazard_ratio_of_late_entries_have_their_risk_sets():
    followed, risk = _late(8)
    high, beta = risk > 0, np.log(hazard_ratio(followed, risk > 0, np.ones((1, 60)))[0])
    score, at_null, variance = 0.0, 0.0, 0.0
    for time in np.unique(followed.time[followed.event]):
        there = (followed.entry < time) & (time <= followed.time)
        died = (followed.time == time) & followed.event
        d, n, share = died.sum(), there.sum(), high[there].mean()
        hazards = np.exp(beta * high[there])
        score += (died & high).sum() - d * hazards[high[there]].sum() / hazards.sum()
        at_null += (died & high).sum() - d * share
        variance += d * share * (1 - share) * (n - d) / max(n - 1, 1)
    assert score == pytest.approx(0, abs=1e-9)
    assert log_rank(followed, high) == pytest.approx(chi2.sf(at_null**2 / variance, 1))


def test_figures_with_weights_against_censoring_are_left_out_for_late_entries():
    table = _table(9)
    label = [label_of(text.rstrip("+"), not text.endswith("+"), "0.5") for text in table["label"]]
    table = table.assign(label=label)
    assert evaluate_survival(table, TIMES, BOOTSTRAP).keys() == {"c_index", "hazard_ratio"}
