"""report.html and its charts: complete, safe, without a network, the same bytes."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mil.report.report import write_report
from mil.run.tables import read_metrics, read_predictions
from tiling.jobs.errors import RequestError

GOLDENS = Path(__file__).parents[2] / "golden"
GOLDEN = GOLDENS / "run-v1"
CHARTS = ("calibration", "learning-fold-0", "learning-fold-1", "precision-recall", "roc")


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


@pytest.mark.parametrize("version", ["run-v1", "run-v2", "run-v3", "run-v4"])
def test_the_page_of_a_run(tmp_path, version):
    golden = Path(shutil.copytree(GOLDENS / version, tmp_path / "run"))
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


@pytest.mark.parametrize("kind", ["regression", "survival", "ordinal", "columns"])
def test_the_page_of_a_run_of_a_further_kind(tmp_path, kind):
    golden = Path(shutil.copytree(GOLDENS / f"run-v4-{kind}", tmp_path / "run"))
    text = _report(golden)
    assert not _Page(text).open and text.count("<svg") >= 2
    assert ("What the slide adds: C-index" in text) == ("none is at risk before" in text) == (kind == "columns")


def test_nothing_is_loaded_from_elsewhere_and_no_path_is_shown(golden):
    text = _report(golden)
    assert all(address.startswith("#") for address in _Page(text).addresses)
    assert "http:" not in text and "https:" not in text and str(golden) not in text
    assert "default-src 'none'" in text


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(golden, tmp_path):
    assert _report(golden) == _report(Path(shutil.copytree(GOLDEN, tmp_path / "elsewhere")))


def test_the_charts_of_the_page_are_files_too(golden, tmp_path, true_charts):
    _report(golden)
    files = {path.name: path.read_bytes() for path in (golden / "charts").iterdir()}
    assert sorted(files) == [f"{name}.{ending}" for name in CHARTS for ending in ("pdf", "png")]
    for name, data in files.items():
        if name.endswith("png"):
            image = Image.open(io.BytesIO(data)).convert("L")
            assert image.width > 800 and image.getextrema() == (pytest.approx(40, abs=60), 255)
        else:
            assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF") and b"CreationDate" not in data
    elsewhere = Path(shutil.copytree(GOLDEN, tmp_path / "elsewhere"))
    _report(elsewhere)
    assert {path.name: path.read_bytes() for path in (elsewhere / "charts").iterdir()} == files


def test_slides_stand_by_loss_and_wrong_ones_are_marked(golden):
    predictions = read_predictions(golden)
    own = np.array([row[f"prob_{row['label']}"] for row in predictions.to_dict("records")])
    expected = predictions["slide_id"].to_numpy()[np.argsort(own, kind="stable")]
    body = re.search(r'<table id="slides">.*?<tbody>(.*?)</tbody>', _report(golden), re.DOTALL)[1]
    shown = re.findall(r'<tr( class="wrong")?><th scope="row" class="left">(.*?)</th>', body)
    assert [name for _, name in shown] == expected.tolist()
    wrong = set(predictions.loc[predictions["label"] != predictions["prediction"], "slide_id"])
    assert {name for mark, name in shown if mark} == wrong


def test_metrics_are_shown_as_they_are_found(golden):
    metrics = read_metrics(golden)
    metrics["slide"]["kappa_of_cohen"] = {"value": 0.1234, "low": None, "high": None}
    metrics["slide"]["auprc_by_class"] = {c: {"value": 0.4321, "low": 0.1, "high": 0.9} for c in ("normal", "tumour")}
    metrics["folds"] = [{"repeat": 0, "fold": 1, "rows": 8, "mcc": {"value": 0.777, "low": 0.5, "high": 0.9}}]
    metrics["patient"], metrics["patient_reason"] = None, "slides of one patient carry different labels"
    difference = {"value": -0.083, "low": -0.388, "high": 0.36, "p": 0.772, "p_delong": None}
    metrics["against_mean"] = {**difference, "auroc": {"value": 0.444, "low": 0.1, "high": 0.8}}
    (golden / "metrics.json").write_text(json.dumps(metrics))
    text = _Page(_report(golden)).text
    assert "kappa of cohen" in text and "0.123" in text
    assert "Against a plain model: AUROC -0.083 (-0.388 to +0.360, p = 0.772) against logistic regression" in text
    assert "auprc" in text.lower() and "0.432" in text
    assert "1.2" in text and "0.777" in text and "counts folds from 1; files (fold-<k>)" in text
    assert "slides of one patient carry different labels" in text


def test_labels_of_the_user_are_text_and_not_html(golden):
    for path in (*golden.glob("*.csv"), *golden.glob("*.json")):
        path.write_text(path.read_text().replace("tumour", "<script>x</script> & Co"))
    text = _report(golden)
    assert "<script>x" not in text and "&lt;script&gt;x&lt;/script&gt; &amp; Co" in text
    assert not _Page(text).open


def test_ids_of_the_user_are_text_and_not_html(golden):
    for path in golden.glob("predictions*.csv"):
        path.write_text(path.read_text().replace("s00", "<script>s</script>").replace("p00", "<b>p"))
    text = _report(golden)
    assert "<script>s" not in text and "&lt;script&gt;s&lt;/script&gt;" in text and "&lt;b&gt;p" in text
    assert not _Page(text).open


def test_left_out_slides_are_named_without_folders(golden):
    reasons = "slide_id,reason\ns99,/home/anna/patient Miller/s99.h5: truncated\ns98,no patch\n"
    (golden / "failures.csv").write_text(reasons)  # of an earlier release, which kept the folders
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
