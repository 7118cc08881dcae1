"""The part on learning: losses where they belong, one axis for all folds, verdicts in the colour of their weight."""

import re

import numpy as np
import pandas as pd
import pytest

from mil.pages.parts import Figures, Paragraph, Points, Tag, Verdict
from mil.report.learning import learning_curve, learning_section, loss_axis

COUNTS = {"folds": 2, "repeats": 2}


def _history(train, val, rate=0.001) -> pd.DataFrame:
    epochs = np.arange(1, len(train) + 1)
    return pd.DataFrame({"epoch": epochs, "train_loss": train, "val_loss": val, "learning_rate": rate})


FINE = _history(np.linspace(1, 0.2, 20), [*np.linspace(1, 0.5, 10), *[0.52] * 10])
FLAT = _history(np.full(20, 0.7), np.full(20, 0.7))


def test_losses_and_the_kept_epoch_lie_where_they_belong():
    svg = learning_curve(_history([1, 0.5], [2, 1.0]), 2, 2).svg("")  # the axes: 244 × 154 px from (46, 8)
    assert "M 168 85 L 290 123.5" in svg and "M 168 8 L 290 85" in svg
    assert '<circle cx="290" cy="85"' in svg and "<title>kept: epoch 2</title>" in svg


def test_each_model_of_a_fold_has_its_lines_and_the_legend_names_them_once():
    both = pd.concat([FINE.assign(member=0), FINE.assign(member=1)], ignore_index=True)
    chart = learning_curve(both, 1.2, 20)
    assert [mark.named for mark in chart._marks if hasattr(mark, "named")] == ["training", "validation", "", ""]
    [picture] = learning_section({0: both}, 20, COUNTS).pictures
    assert picture.caption.startswith("2 of 2 models, the first with its validation loss from 1 to")


def test_one_axis_for_all_folds_that_a_runaway_loss_does_not_flatten():
    assert loss_axis([_history([1, 0.5], [1.2, 2]), FINE]) == pytest.approx(2 * 1.04)
    assert loss_axis([_history([1, 0.5], [1.2, 99]), FINE]) == pytest.approx(3 * 1.2 * 1.04)
    assert loss_axis([_history([0, 0], [0, 0])]) > 0


def test_every_fold_has_its_curve_its_verdict_and_its_file():
    section = learning_section({0: FINE, 1: FLAT, 3: FLAT}, 20, COUNTS)
    first, second, last = section.pictures
    assert (first.title, second.title, last.title) == ("repeat 1, fold 1", "repeat 1, fold 2", "repeat 2, fold 2")
    assert [picture.name for picture in section.pictures] == ["learning-fold-0", "learning-fold-1", "learning-fold-3"]
    assert first.tag == Tag("fine", "good") and second.tag == Tag("does not learn", "failed")
    assert second.caption == "training loss from 0.7 to 0.7"
    assert section.parts[0] == Verdict("Overall:", Tag("does not learn", "failed"))
    points = next(part for part in section.parts if isinstance(part, Points))
    assert [(tag.text, reason[:7]) for tag, reason in points.items] == [
        ("does not learn", "2 of 3."),
        ("fine", "1 of 3."),
    ]


def test_the_sentence_names_the_epoch_and_the_loss_that_the_dot_marks():
    kept = FINE.assign(stop_loss=[np.nan] * 4 + [1.0] * 9 + [0.5] + [1.0] * 6)
    [picture] = learning_section({0: kept}, 20, COUNTS).pictures
    assert picture.caption == "validation loss from 1 to 0.52 in epoch 14 of 20"
    assert "<title>kept: epoch 14</title>" in picture.chart.svg("")


def test_without_repeats_a_fold_has_its_number_alone():
    assert [p.title for p in learning_section({1: FLAT}, 20, {"folds": 2, "repeats": 1}).pictures] == ["fold 2"]


def test_folds_share_the_ends_of_their_axes():
    long = _history(np.linspace(2, 0.2, 40), np.linspace(2, 0.2, 40))
    short, _ = learning_section({0: FINE, 1: long}, 40, COUNTS).pictures
    ticks = re.findall(r">([\d.]+)</text>", short.chart.svg(""))
    assert "40" in ticks and "1.8" in ticks  # its own would end at 20 and 1.04


@pytest.mark.parametrize("history", [FINE[:0], _history([0.5], [np.nan]), _history([0.6], [0.6], 0.0)])
def test_without_a_curve_there_is_one_sentence(history):
    section = learning_section({0: history}, 20, COUNTS)
    assert not any(isinstance(part, Figures) for part in section.parts)
    [said] = section.parts
    assert isinstance(said, Paragraph) and "there are no curves to judge" in said.text
