"""Faithfulness of maps whose truth is known."""

import numpy as np
import pytest

from mil.maps.faithfulness import ENDING, FRACTIONS, measure, write_cohort, write_slide
from mil.maps.measured import read_measured


def test_there_are_as_many_random_orders_as_the_interval_needs(tmp_path):
    found = measure(np.arange(20.0), lambda patches: float(patches.mean() / 20), seed=0)
    write_slide(tmp_path, "a", "logit", "digest", found)
    area = read_measured(tmp_path / f"a{ENDING}")["area"]
    assert 1 / (len(found.areas) + 1) <= 0.025
    assert area["low"] == pytest.approx(found.areas.min()) and area["high"] == pytest.approx(found.areas.max())


def test_faithfulness_knows_a_true_map_from_a_false_one(tmp_path):
    weights = np.zeros(100)
    weights[:5] = 1.0  # the slide is positive where any of five patches is there

    def probability(patches):
        return float(weights[patches].max())

    true = measure(weights, probability, seed=0)
    false = measure(-weights, probability, seed=0)
    chance = np.mean(
        [measure(np.random.default_rng(i).random(100), probability, seed=i).areas.mean() for i in range(20)]
    )
    assert true.areas.mean() > 0.4 and (true.areas > 0).all() and false.areas.mean() < -0.1 and abs(chance) < 0.1
    assert true.deletion[0] == 1 and true.deletion[FRACTIONS.index(0.05)] == 0 and (true.insertion == 1).all()
    for slide_id, found in (("a", true), ("b", false)):
        write_slide(tmp_path, slide_id, "logit", "digest", found)
    write_cohort(tmp_path, {"a": "p1", "b": "p2", "missing": "p3"})
    cohort = read_measured(tmp_path / "faithfulness.json")
    assert cohort["slides"] == 2 and cohort["score"] == "logit"
    assert cohort["area"]["value"] == pytest.approx((true.areas.mean() + false.areas.mean()) / 2)
