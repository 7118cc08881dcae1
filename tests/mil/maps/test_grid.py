"""The grid of scores and its colours against known geometry."""

import math

import numpy as np
import pytest
from drawn_slides import GRID, attention
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps

from mil.maps.grid import bar_ticks, colour_bar, colour_scale, render, score_grid
from mil.maps.scores import PatchScores, patch_scores


def grid_of(slide, shape, downsample):
    return score_grid(slide.coords, patch_scores(slide, "attention").values, slide.patch_size_l0, shape, downsample)


def test_one_marked_patch_covers_exactly_its_level_zero_square():
    values = np.ones(len(GRID))
    values[GRID.index((1536, 1024))] = 9
    for downsample in (1.0, 3.0, 4.0, 7.3):
        shape = (math.ceil(3000 / downsample), math.ceil(4000 / downsample))
        scores = grid_of(attention(GRID, values), shape, downsample)
        rows, columns = np.nonzero(scores > (np.nanmax(scores) + np.nanmin(scores)) / 2)
        edges = [(columns.min(), 1536), (columns.max() + 1, 2048), (rows.min(), 1024), (rows.max() + 1, 1536)]
        for found, l0 in edges:
            assert abs(found * downsample - l0) <= 0.5 * downsample + 1e-9
        assert np.isnan(scores[:, round(3584 / downsample) + 1 :]).all()


def test_the_map_is_attention_times_n_and_overlaps_are_averaged():
    slide = attention([(0, 0), (256, 0)], [1, 3])
    scores = grid_of(slide, (3000, 4000), 1.0)
    assert scores[0, 0] == pytest.approx(0.5) and scores[0, 700] == pytest.approx(1.5)
    assert scores[511, 300] == pytest.approx(1.0) and np.isnan(scores[512, 0])


def test_more_is_warmer_and_the_colours_are_the_scores():
    values = np.linspace(-3, 5, 50)
    slide = attention([(i * 64, 0) for i in range(50)], np.ones(50), size=64)
    scores = PatchScores(values, "logit", "log-odds")
    scale = colour_scale(scores)
    rgba = render(score_grid(slide.coords, values, 64, (1, 52), 64.0), scale)[0]
    assert (rgba[50:, 3] == 0).all() and (np.diff(rgba[:50, :3].astype(float) @ (0.2126, 0.7152, 0.0722)) > 0).all()
    table = np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255)
    back = [np.abs(table - colour).sum(1).argmin() / 255 * 10 - 5 for colour in rgba[:50, :3].astype(int)]
    assert np.abs(back - values).max() <= 2 * 10 / 255  # the darkest steps of the table are hardly told apart


@pytest.mark.parametrize(
    ("kind", "values", "high", "ticks"),
    [
        ("logit", [-17.0, 2.5], 5.0, ["≤ -5", "0", "5"]),  # a normal slide's patches do not glow for being the highest
        ("logit", [-2.0, 3.0], 3.0, ["-3", "0", "3"]),
        ("logit", [0.1, 33.0], 5.0, ["-5", "0", "≥ 5"]),
        ("logit", [-0.1, 0.2], 1.0, ["-1", "0", "1"]),
        ("contribution", [-0.02, 0.05], 0.05, ["-0.05", "0", "0.05"]),
        ("gradient", [0.0, 0.0], 0.5, ["-0.5", "0", "0.5"]),
    ],
)
def test_what_speaks_neither_for_nor_against_has_the_middle_colour(kind, values, high, ticks):
    scores = PatchScores(np.array(values), kind, kind)
    scale = colour_scale(scores)
    assert (scale.low, scale.middle, scale.high) == (-high, 0.0, high) and bar_ticks(scores) == ticks


def test_what_speaks_neither_for_nor_against_lets_the_tissue_through():
    scale = colour_scale(PatchScores(np.array([-2.0, 2.0]), "contribution", "contribution"))
    opacity = render(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), scale, 1.0)[0, :, 3].astype(int).tolist()
    assert opacity[0] == opacity[4] == 255 and opacity[2] < 32 and opacity[2] < opacity[1] < 255
    assert opacity[1] == pytest.approx(opacity[3], abs=1)
    cold = render(np.array([[0.1, 1.0, 10.0]]), colour_scale(PatchScores(np.array([0.1, 10.0]), "attention", "")), 1.0)
    assert (np.diff(cold[0, :, 3].astype(int)) > 0).all()


def test_the_colour_bar_runs_from_low_to_high():
    scale = colour_scale(PatchScores(np.array([0.5, 8.0]), "attention", "attention", logarithmic=True))
    bar = colour_bar(scale)
    expected = np.rint(colormaps["inferno"](np.linspace(0, 1, bar.shape[1])) * 255)
    assert bar.shape[0] == 1 and np.abs(bar[0] - expected).max() <= 3
    assert scale.middle == pytest.approx(math.sqrt(scale.low * scale.high))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_grid_is_the_mean_by_area(data):
    size, downsample = data.draw(st.integers(3, 40)), data.draw(st.floats(1, 9))
    origin = data.draw(st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
    corner = st.tuples(st.integers(-45, 80), st.integers(-45, 80))  # over each edge of the picture, and beyond it
    coords = np.array(data.draw(st.lists(corner, min_size=1, max_size=8)))
    values = np.random.default_rng(0).normal(size=len(coords))
    shape = (11, 17)

    def cover(start, n):
        return np.clip(np.minimum(np.arange(n) + 1, start + size / downsample) - np.maximum(np.arange(n), start), 0, 1)

    starts = (coords - origin) / downsample
    areas = np.array([np.outer(cover(y, shape[0]), cover(x, shape[1])) for x, y in starts])
    total = areas.sum(0)
    expected = (areas * values[:, None, None]).sum(0) / np.where(total > 0, total, 1)
    found = score_grid(coords, values, size, shape, downsample, origin)
    sure = np.abs(total - 0.5) > 1e-5
    assert (np.isnan(found) == (total < 0.5))[sure].all()
    shown = ~np.isnan(found)
    assert np.allclose(found[shown], expected[shown], atol=1e-9)
