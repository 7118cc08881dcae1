"""report.html: complete, safe, without a network, the same bytes; its curves and bins against scikit-learn."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve

from mil.metrics.bootstrap import Bootstrap
from mil.metrics.curves import GRID, calibration_bins, precision_curves, scores_of
from mil.pages.chart import Chart
from mil.report.report import write_report
from mil.run.tables import read_metrics, read_predictions, write_failures
from tiling.jobs.errors import RequestError

GOLDEN = Path(__file__).parents[2] / "golden" / "run-v1"


class _Page(HTMLParser):
    """What stands on a page: its balance of tags, addresses and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_data(self, data):
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def _report(out) -> str:
    write_report(out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run(golden):
    text = _report(golden)
    page = _Page(text)
    assert not page.open
    figure = read_metrics(golden)["slide"]["auroc"]
    assert f"{figure['value']:.3f}" in page.text and f"{figure['low']:.3f} – {figure['high']:.3f}" in page.text
    for name in ("Result", "Learning", "Ranking", "Labels", "Probabilities", "Slides", "Left out", "Settings"):
        assert f">{name}</h2>" in text
    assert text.count("<svg") == 2 + 3  # a learning curve a fold; ROC, precision and recall, calibration
    assert "No labelled slide was left out" in page.text
    assert "--patches" in page.text and "<img" not in text


def test_nothing_is_loaded_from_elsewhere_and_no_path_is_shown(golden):
    text = _report(golden)
    assert all(address.startswith("#") for address in _Page(text).addresses)
    assert "http:" not in text and "https:" not in text and str(golden) not in text
    assert "default-src 'none'" in text


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(golden, tmp_path):
    assert _report(golden) == _report(Path(shutil.copytree(GOLDEN, tmp_path / "elsewhere")))


def test_slides_stand_by_loss_and_wrong_ones_are_marked(golden):
    predictions = read_predictions(golden)
    own = np.array([row[f"prob_{row['label']}"] for row in predictions.to_dict("records")])
    expected = predictions["slide_id"].to_numpy()[np.argsort(own, kind="stable")]
    body = re.search(r'<table id="slides">.*?<tbody>(.*?)</tbody>', _report(golden))[1]
    shown = re.findall(r'<tr( class=wrong)?><th scope="row" class="left">(.*?)</th>', body)
    assert [name for _, name in shown] == expected.tolist()
    wrong = set(predictions.loc[predictions["label"] != predictions["prediction"], "slide_id"])
    assert {name for mark, name in shown if mark} == wrong


def test_metrics_are_shown_as_they_are_found(golden):
    metrics = read_metrics(golden)
    metrics["slide"]["kappa_of_cohen"] = {"value": 0.1234, "low": None, "high": None}
    metrics["slide"]["auprc_by_class"] = {c: {"value": 0.4321, "low": 0.1, "high": 0.9} for c in ("normal", "tumour")}
    metrics["folds"] = [{"repeat": 0, "fold": 1, "rows": 8, "mcc": {"value": 0.777, "low": 0.5, "high": 0.9}}]
    metrics["patient"], metrics["patient_reason"] = None, "slides of one patient carry different labels"
    (golden / "metrics.json").write_text(json.dumps(metrics))
    text = _Page(_report(golden)).text
    assert "kappa of cohen" in text and "0.123" in text
    assert "auprc" in text.lower() and "0.432" in text
    assert "1.2" in text and "0.777" in text
    assert "slides of one patient carry different labels" in text


def test_labels_of_the_user_are_text_and_not_html(golden):
    for path in (*golden.glob("*.csv"), *golden.glob("*.json")):
        path.write_text(path.read_text().replace("tumour", "<script>x</script> & Co"))
    text = _report(golden)
    assert "<script>x" not in text and "&lt;script&gt;x&lt;/script&gt; &amp; Co" in text
    assert not _Page(text).open


def test_left_out_slides_are_named_without_folders(golden):
    write_failures(golden, {"s99": "/home/anna/patient Miller/s99.h5: truncated", "s98": "no patch"})
    text = _Page(_report(golden)).text
    assert "s99.h5: truncated" in text and "Miller" not in text and "no patch" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.6, 0.9, "Guessing would be 50."),
        (0.4, 0.9, "does not show that the model works"),
        (0.1, 0.4, "worse than guessing"),
        (None, None, "in 70 of 100"),
    ],
)
def test_plain_words_follow_the_interval(golden, low, high, said):
    metrics = read_metrics(golden)
    metrics["slide"]["auroc"] = {"value": 0.7, "low": low, "high": high}
    (golden / "metrics.json").write_text(json.dumps(metrics))
    assert said in _Page(_report(golden)).text


def test_a_head_without_epochs_has_no_curves(golden):
    for path in golden.glob("fold-*/history.csv"):
        path.write_text("epoch,learning_rate,train_loss,val_loss,val_auroc\n1,,,0.5,0.7\n")
    assert "there are no curves to judge" in _report(golden)


def test_a_run_that_is_not_finished_has_no_report(golden):
    (golden / "metrics.json").unlink()
    with pytest.raises(RequestError, match="not finished"):
        write_report(golden)


def test_precision_by_recall_equals_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.4
    scores = np.round(rng.random(60) + 0.5 * truth, 1)  # with ties
    weights = np.vstack([np.ones(60), rng.integers(0, 4, (3, 60))])
    curves = precision_curves(scores, truth, weights)
    for row, own in zip(curves, weights, strict=True):
        precision, recall, _ = precision_recall_curve(truth, scores, sample_weight=own)
        for place in (1, 50, 100, 153, 200):
            highest = np.flatnonzero(recall >= GRID[place] - 1e-9)[-1]  # scikit-learn's thresholds rise
            assert row[place] == pytest.approx(precision[highest])


def test_calibration_bins_equal_scikit_learn():
    rng = np.random.default_rng(2)
    probabilities = rng.random(200)
    labels = np.where(rng.random(200) < probabilities**2, "b", "a")
    patients = [f"p{i // 2}" for i in range(200)]
    table = pd.DataFrame(
        {"patient_id": patients, "label": labels, "prob_a": 1 - probabilities, "prob_b": probabilities}
    )
    bins = calibration_bins(scores_of(table, ["a", "b"], 1, Bootstrap(200, 0)))
    true, said = calibration_curve(labels == "b", probabilities, n_bins=10)
    assert [b.true for b in bins] == pytest.approx(true.tolist())
    assert [b.said for b in bins] == pytest.approx(said.tolist())
    assert all(b.low <= b.true <= b.high and (b.low < b.high or b.true in (0, 1)) for b in bins)
    assert sum(b.rows for b in bins) == 200


def test_a_point_of_a_chart_lies_where_its_axes_say():
    chart = Chart((0, 10), (0, 1), size=(156, 146))  # 100 × 100 px between the axes
    chart.line([0, 5, 10], [0, 0.25, 2], "c0")  # beyond the upper end: at the edge
    assert 'points="46.0,108.0 96.0,83.0 146.0,8.0"' in chart.svg("")


def test_a_line_is_broken_where_there_is_no_number():
    chart = Chart((0, 3), (0, 1))
    chart.line([0, 1, 2, 3], [0.1, np.nan, 0.3, 0.4], "c0")
    assert chart.svg("").count("polyline") == 2
