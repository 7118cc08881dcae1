"""The slides of a report: by loss over all repeats, the wrong ones marked, pictures where they are."""

import math

import pandas as pd
import pytest

from mil.report.slides import slides_by_loss, slides_section
from mil.run.layout import PICTURES, picture_path
from mil.tasks.classification import Classification

TASK = Classification(("a", "b"), 1)
ROWS = [  # slide, patient, repeat, fold, label, prediction, probability of b
    ("good", "p1", 0, 0, "b", "b", 0.9),
    ("good", "p1", 1, 1, "b", "b", 0.8),
    ("torn", "p2", 0, 1, "a", "a", 0.4),
    ("torn", "p2", 1, 1, "a", "b", 0.6),
    ("bad", "p3", 0, 0, "a", "b", 1.0),
    ("bad", "p3", 1, 0, "a", "b", 0.5),
]


@pytest.fixture
def predictions():
    table = pd.DataFrame(ROWS, columns=["slide_id", "patient_id", "repeat", "fold", "label", "prediction", "prob_b"])
    return table.assign(prob_a=1 - table["prob_b"])


def test_one_row_a_slide_the_highest_loss_first(predictions):
    bad, torn, good = slides_by_loss(TASK, predictions, ())
    assert [row.name for row in (bad, torn, good)] == ["bad", "torn", "good"]
    assert (torn.shown, torn.wrong, torn.rows, torn.folds) == (pytest.approx(0.5), 1, 2, "2, 2")
    assert torn.loss == pytest.approx(-(math.log(0.6) + math.log(0.4)) / 2)
    assert bad.loss == pytest.approx(-(math.log(1e-7) + math.log(0.5)) / 2)  # finite where the probability is 0
    assert (good.other, good.label, good.prediction, good.folds) == ("p1", "b", "b", "1, 2")
    assert [slide.pictures for slide in good.slides] == [()]


def _page(out, predictions) -> str:
    [markup] = slides_section(out, TASK, predictions).parts
    return str(markup)


def test_how_often_a_slide_was_wrong_is_said(tmp_path, predictions):
    page = _page(tmp_path, predictions)
    assert page.count('<tr class="wrong">') == 2 and "wrong<span>2</span>" in page
    assert "wrong in 1 of 2</span>" in page and "wrong in 2 of 2</span>" in page
    once = _page(tmp_path, predictions[predictions["repeat"] == 0])
    assert '<span class="tag failed">wrong</span>' in once and "--patches" in once and "<img" not in once


def test_pictures_stand_beside_those_slides_that_have_them(tmp_path, predictions):
    for kind in PICTURES:
        path = picture_path(tmp_path, kind, "torn")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    page = _page(tmp_path, predictions)
    assert page.count("<img") == 2 and 'src="pictures/thumbnails/torn.jpg"' in page
    assert page.count('<td class="left pictures">') == 3 and "--patches" not in page
