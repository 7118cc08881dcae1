"""Numbers in words, letter by letter: terminals and pages show these very texts."""

import pytest

from mil.pages import words

FIGURE = {"value": 0.93449, "low": 0.88, "high": 0.97}
ALONE = {"value": 0.5, "low": None, "high": None}
UNDEFINED = {"value": None, "low": None, "high": None}


def test_a_value_and_its_interval():
    assert words.value(FIGURE) == "0.934" and words.spread(FIGURE) == "0.880 – 0.970"
    assert words.interval(FIGURE) == "0.934 (0.880–0.970)" and words.interval(FIGURE, 2) == "0.93 (0.88–0.97)"


def test_numbers_have_no_more_digits_than_can_be_read():
    figure = {"value": 4.8912, "low": 0.00012, "high": 23456.789}
    assert words.interval(figure) == "4.891 (0.00012–23,457)" and words.spread(figure, 2) == "0.00012 – 23,457"
    assert words.value({**figure, "value": -4.4e-16}) == "0.000"


def test_without_an_interval_the_value_stands_alone():
    assert words.value(ALONE) == "0.500" and words.spread(ALONE) == "" and words.interval(ALONE) == "0.500"


def test_what_is_undefined_says_so():
    assert words.value(UNDEFINED) == words.value(None) == "–" and words.spread(UNDEFINED) == "undefined"
    assert words.interval(UNDEFINED) == words.interval(None) == "undefined"
    assert words.interval(UNDEFINED, 2, "–") == "–"


def test_what_is_a_figure():
    assert words.is_figure(FIGURE) and words.is_figure({**ALONE, "p": 0.1})
    assert not words.is_figure({"a": FIGURE}) and not words.is_figure(0.5)


@pytest.mark.parametrize(("p", "said"), [(0.0421, "p = 0.042"), (0.0009, "p < 0.001"), (None, "p unknown")])
def test_p_values(p, said):
    assert words.p_value(p) == said


def test_a_difference_in_a_sentence():
    against = {"value": 0.0512, "low": -0.021, "high": 0.134, "p": 0.04, "p_delong": 0.0001}
    said = "AUROC +0.051 (-0.021 to +0.134, p = 0.040; DeLong p < 0.001) against runs/mean (0.812) on the same slides"
    assert words.difference_sentence(against, "AUROC", "runs/mean", 0.8121) == said
    assert "; DeLong" not in words.difference_sentence({**against, "p_delong": None}, "AUROC", "runs/mean", 0.8)


def test_low_to_high_with_and_without_signs():
    assert words.low_to_high(FIGURE, 2) == "+0.88 to +0.97" and words.low_to_high(FIGURE, 2, "-") == "0.88 to 0.97"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_seconds(seconds, said):
    assert words.seconds(seconds) == said
