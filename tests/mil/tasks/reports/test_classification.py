"""What a report says of a classification, from plain numbers."""

import numpy as np
import pandas as pd
import pytest

from mil.metrics.bootstrap import Bootstrap
from mil.metrics.classification import evaluate
from mil.pages.parts import Card, Cards, Figures, Heading, Matrix, Number, Paragraph, Table
from mil.tasks.reports.classification import FIGURES, classification_sections
from mil.tasks.reports.figures import title

DRAWS = Bootstrap(200, 0)
TWO, THREE = ("neg", "pos"), ("a", "b", "c")


def _predictions(labels, probabilities, classes) -> pd.DataFrame:
    """Row i is the slide of patient i; the most probable class is predicted."""
    table = pd.DataFrame(np.asarray(probabilities, float), columns=[f"prob_{name}" for name in classes])
    predicted = [classes[i] for i in np.argmax(probabilities, axis=1)]
    return table.assign(
        label=labels, prediction=predicted, patient_id=[f"p{i}" for i in range(len(table))], repeat=0, fold=0
    )


def _metrics(table, classes, positive) -> dict:
    place = None if positive is None else classes.index(positive)
    figures = evaluate(table, list(classes), place, DRAWS.draws, DRAWS.seed)
    return {"slide": figures, "patient": None, "counts": {"patients": len(table), "slides": len(table), "repeats": 1}}


def _sections(table, classes, positive, **more):
    found = classification_sections(classes, positive, {**_metrics(table, classes, positive), **more}, table, DRAWS)
    return {section.title: section for section in found}


def _binary(n=40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = np.array(["neg", "pos"] * (n // 2))
    scores = np.clip(rng.normal(0.4 + 0.2 * (labels == "pos"), 0.2), 0.01, 0.99)
    return _predictions(labels, np.stack([1 - scores, scores], axis=1), TWO)


def _of(section, kind):
    return [part for part in section.parts if isinstance(part, kind)]


def test_the_sections_and_their_charts():
    sections = _sections(_binary(), TWO, "pos")
    assert list(sections) == ["Result", "Ranking", "Labels", "Probabilities"]
    names = [picture.name for section in sections.values() for picture in section.pictures]
    assert names == ["roc", "precision-recall", "calibration"]


def test_the_headline_holds_the_figures_of_the_metrics():
    table = _binary()
    auroc = _metrics(table, TWO, "pos")["slide"]["auroc"]
    result = _sections(table, TWO, "pos")["Result"]
    [cards] = _of(result, Cards)
    assert [card.title for card in cards.cards] == ["AUROC", "balanced accuracy", "sensitivity", "specificity"]
    assert cards.cards[0].number == Number(f"{auroc['value']:.3f}", f"{auroc['low']:.3f} – {auroc['high']:.3f}")
    said = " ".join(part.text for part in _of(result, Paragraph))
    assert "“pos” against the other label" in said and f"in {100 * auroc['value']:.0f} of 100 such pairs" in said


def test_copied_labels_have_a_card_and_what_matters_is_said():
    patch = {"accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}}
    counts = {"patients": 12, "slides": 12, "repeats": 3}
    result = _sections(_binary(12), TWO, "pos", patch=patch, counts=counts, patient_reason="mixed")["Result"]
    [cards] = _of(result, Cards)
    assert cards.cards[-1] == Card("accuracy on copied patch labels", Number("0.750", "0.500 – 1.000"))
    said = [part.text for part in _of(result, Paragraph)]
    for text in ("Only 12 patients: ", "in each of 3 repeats", "There are no figures by patient: mixed."):
        assert any(text in line for line in said)


def test_every_figure_stands_in_the_table_with_its_meaning():
    table = _binary()
    metrics = _metrics(table, TWO, "pos")
    by_patient = {"auroc": {"value": 0.5, "low": 0.25, "high": 0.75}}
    [figures] = _of(_sections(table, TWO, "pos", patient=by_patient)["Result"], Table)
    assert figures.head == ("", "by slide, 95 % interval", "by patient, 95 % interval", "") and figures.last_left
    rows = {row[0]: row for row in figures.rows}
    assert set(rows) == {title(name, FIGURES) for name, value in metrics["slide"].items() if "value" in value}
    assert next(iter(rows)) == "AUROC" and rows["AUROC"][2] == Number("0.500", "0.250 – 0.750")
    assert rows["MCC"][3].text.startswith("correlation of prediction and truth")
    assert title("kappa_of_cohen", FIGURES) == "kappa of cohen"


def test_curves_lie_where_they_belong_and_their_files_say_the_area():
    # One of ten negatives is above all positives, the others are below. Axes from (46, 302) to (370, 8).
    scores = np.array([0.9, *[0.1] * 9, *[0.8] * 10])
    table = _predictions(["neg"] * 10 + ["pos"] * 10, np.stack([1 - scores, scores], axis=1), TWO)
    roc, precision = _sections(table, TWO, "pos")["Ranking"].pictures
    line = ' style="fill:none;stroke:var(--c0)'
    assert f'd="M 46 302 L 76.8 302 L 78.4 8 L 370 8 L 370 8"{line}' in roc.chart.svg("")
    height = f"{302 - 10 / 11 * 294:.1f}"  # at every recall but 0 ten of the eleven called are positive
    assert f'd="M 46 302 L 47.6 {height} L 370 {height} L 370 {height}"{line}' in precision.chart.svg("")
    assert roc.caption == "Positive: pos. Dotted: guessing." and roc.key == ()
    [named] = [mark.named for mark in roc.chart._marks if getattr(mark, "named", "")]
    assert named.startswith("pos: AUROC 0.900 (")


def test_every_class_of_several_has_a_colour_and_a_curve_where_it_can():
    table = _predictions(["a", "b", "a", "b"], [(0.6, 0.3, 0.1), (0.3, 0.5, 0.2)] * 2, THREE)
    roc = _sections(table, THREE, None)["Ranking"].pictures[0]
    assert roc.key == (("c0", "a"), ("c1", "b"), ("c2", "c")) and roc.caption == ". Dotted: guessing."
    svg = roc.chart.svg("")
    assert "var(--c0)" in svg and "var(--c1)" in svg and "var(--c2)" not in svg


def test_the_confusion_matrix_counts_truth_by_prediction():
    table = _predictions(["a", "a", "b", "c"], [(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 1, 0)], THREE)
    labels = _sections(table, THREE, None)["Labels"]
    assert _of(labels, Matrix) == [
        Matrix(THREE, ((1, 1, 0), (0, 1, 0), (0, 1, 0)), ((0.5, 0.5, 0), (0, 1, 0), (0, 1, 0)))
    ]
    assert [part.text for part in _of(labels, Heading)] == ["Confusion matrix", "By label"]
    assert "The most probable label is predicted." in _of(labels, Paragraph)[0].text
    [by_label] = _of(labels, Table)
    assert [row[0] for row in by_label.rows] == list(THREE)
    recall = by_label.head.index("recall")
    assert by_label.rows[0][recall].value == "0.500"
    assert "share of positive slides in training" in _of(_sections(_binary(), TWO, "pos")["Labels"], Paragraph)[0].text


def test_calibration_dots_lie_at_what_was_said_and_what_came_true():
    table = _predictions(["neg", "pos", "pos", "pos"], [(0.25, 0.75)] * 4, TWO)  # one bin: 0.75 said, 0.75 true
    [figures] = _of(_sections(table, TWO, "pos")["Probabilities"], Figures)
    [picture] = figures.pictures
    svg = picture.chart.svg(picture.said)
    assert '<circle cx="289" cy="81.5" r="9.0"' in svg
    assert "predicted 0.75, came true 0.75 (" in svg and "4 slides</title>" in svg
    assert "eight are pos." in picture.caption and "probability of pos, as predicted" in svg


def test_test_slides_of_one_label_are_said_to_be_so():
    table = _predictions(["neg"] * 4, [(0.25, 0.75)] * 4, TWO)
    sections = _sections(table, TWO, "pos")
    assert "hold a single label" in _of(sections["Result"], Paragraph)[0].text
    assert sections["Ranking"].pictures[0].chart.svg("").count("var(--c0)") == 0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.6, 0.9, "Guessing would be 50."), (0.4, 0.9, "That holds 50"), (0.1, 0.4, "worse than guessing")],
)
def test_the_interval_decides_what_is_said(low, high, said):
    metrics = _metrics(_binary(), TWO, "pos")
    metrics["slide"]["auroc"] = {"value": 0.7, "low": low, "high": high}
    result, *_ = classification_sections(TWO, "pos", metrics, _binary(), DRAWS)
    assert sum(said in part.text for part in _of(result, Paragraph)) == 1


@pytest.mark.parametrize(("p", "said"), [(0.003, "Found something"), (0.4, "Nothing shown to be found")])
def test_whether_anything_was_found_is_said_first(p, said):
    result = _sections(_binary(), TWO, "pos", found={"p": p, "found": p <= 0.05})["Result"]
    assert _of(result, Paragraph)[0].text.startswith(said)
