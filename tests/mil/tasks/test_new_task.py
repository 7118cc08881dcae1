"""A kind of target is one module and one line of registration: a toy, how many cells, goes through the whole program.

It stands for what a task has to bring, and touches no other module.
"""

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from mil import predict, train
from mil.metrics.bootstrap import draw_weights, interval
from mil.pages.parts import Paragraph, Section
from mil.tasks.registry import TASKS
from mil.tasks.task import Judged, Said, Strata, Task
from mil.viewer.views import list_slides
from tiling.jobs.errors import RequestError
from tiling.manifest import load_table

FAST = dict(folds=2, epochs=30, embed_dim=16, attention_dim=4, bootstrap=100, device="cpu", learning_rate=0.01)


@dataclass(frozen=True)
class Count(Task):
    """Targets (S,) float32 are numbers; an answer is one number, in units of `unit`."""

    unit: float

    kind, losses, watched, headline = "count", ("squared",), "error", "error"
    baseline, judged_title, figure_titles = "ridge on mean features", "answer", {"error": "mean error"}
    output_names, value_columns = ("cells",), ("cells",)

    @classmethod
    def read(cls, rows, target, table):
        texts = {row.slide_id: row.labels[target.column] for row in rows}
        bad = [f"{slide_id}: {text!r} is no number" for slide_id, text in texts.items() if not text.isdecimal()]
        if bad:
            raise ValueError("\n".join(bad))
        targets = np.array([float(text) for text in texts.values()], np.float32)
        return cls(float(targets.std())), targets

    @classmethod
    def restored(cls, described):
        return cls(float(described["unit"]))

    def provenance(self):
        return {"unit": self.unit}

    state = provenance

    def strata(self, targets):
        return (Strata((targets > np.median(targets)).astype(np.int64), ("few", "many")),)

    def loss_terms(self, targets):
        return torch.tensor([float(targets.mean())])

    def criterion(self, loss, terms, label_smoothing=0.0):
        return lambda logits, targets: (logits[:, 0] + terms[0] / self.unit - targets / self.unit) ** 2

    def judged_by(self, terms):
        return self.criterion("squared", terms)

    def score(self, answers, targets):
        return float(np.abs(answers[:, 0] - targets).mean())

    def answers(self, logits):
        return logits.numpy() * self.unit

    def calibrate(self, answers, targets, trained_on):
        return {"shift": float((targets - answers[:, 0]).mean()) if len(targets) else 0.0}

    def calibrated(self, answers, calibration):
        return answers + calibration["shift"]

    def shared(self, calibrations):
        return {}

    def columns(self, answer, calibration):
        return {"prediction": f"{answer[0]:.1f}", "cells": answer[0]}

    def label(self, target):
        return f"{target:g}"

    def evaluate(self, table, bootstrap):
        weights = draw_weights(table["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
        return {"error": interval(weights @ _errors(table) / weights.sum(axis=1))}

    def counts(self, table):
        return {"most": float(table["label"].astype(float).max())}

    def against(self, table, other, bootstrap):
        own = {"error": self.evaluate(other, bootstrap)["error"]}
        difference = float(_errors(table).mean() - _errors(other).mean())
        return {"value": difference, "low": difference, "high": difference, "p": 0.5, "p_delong": None, **own}

    def fit_baseline(self, vectors, targets, held_out):
        fitted = Ridge().fit(vectors, targets)
        return lambda others: fitted.predict(others)[:, None]

    def judge(self, table):
        errors = _errors(table)
        return Judged(errors < self.unit, table["cells"].to_numpy(float), errors)

    def describe(self, column, targets):
        return f"target {column}: {targets.min():g} to {targets.max():g}"

    def figure_notes(self):
        return ["the error is in cells"]

    def differs_from(self, other):
        return "" if isinstance(other, Count) else "counts nothing"

    def say(self, answer, at):
        return Said("cells", "cells", f"{answer[at]:.1f}")

    def sections(self, metrics, predictions, bootstrap):
        return [Section("Counted", (Paragraph(f"off by {metrics['slide']['error']['value']:.2f} cells"),))]


def _errors(table):
    return np.abs(table["cells"] - table["label"].astype(float)).to_numpy()


@pytest.fixture
def registered(monkeypatch):
    module = ModuleType("counting")
    module.TASK = Count
    monkeypatch.setitem(sys.modules, "counting", module)
    monkeypatch.setitem(TASKS, "count", "counting")


@pytest.fixture
def counted(tmp_path, write_features):
    """40 slides of 20 patients: feature 0 of a slide's patches is its number of cells, 10 to 90, and noise."""
    rng = np.random.default_rng(0)
    (tmp_path / "f").mkdir()
    rows = []
    for i in range(40):
        cells = int(rng.integers(10, 90))
        features = rng.normal(size=(12, 6))
        features[:, 0] += cells / 20
        write_features(tmp_path / "f", f"s{i:02d}", features)
        rows.append((f"s{i:02d}", f"p{i // 2:02d}", cells))
    table = tmp_path / "f" / "labels.csv"
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "cells"]).to_csv(table, index=False)
    return table


@pytest.mark.usefixtures("registered")
def test_a_new_task_goes_through_training_prediction_report_and_compare(counted, tmp_path):
    run = train(counted.parent, counted, "cells", tmp_path / "run", task="count", **FAST)
    predictions = run.predictions
    assert np.corrcoef(predictions["cells"], predictions["label"].astype(float))[0, 1] > 0.9
    assert run.metrics["slide"]["error"]["value"] == pytest.approx(_errors(predictions).mean())
    assert run.metrics["against_mean"]["error"]["value"] < 10 and run.metrics["counts"]["most"] > 60
    assert run.task == Count(run.provenance["unit"]) and run.provenance["task"] == "count"
    assert "val_error" in run.history(0) and len(run.patient_predictions) == 20
    page = run.report.read_text()
    assert "Counted" in page and "off by" in page and "AUROC" not in page
    slide = run.attention("s03")
    assert slide.task == run.task and slide.probabilities[0] == pytest.approx(
        predictions.set_index("slide_id").loc["s03", "cells"]
    )
    found = predict(run, counted.parent).table.set_index("slide_id")
    assert found.loc["s03", "cells"] == pytest.approx(slide.probabilities[0])
    again = train(counted.parent, counted, "cells", tmp_path / "two", task="count", compare=str(run.path), **FAST)
    assert again.metrics["slide"] == run.metrics["slide"]
    said = list_slides(run.path, load_table(counted, needs_path=False))
    assert said[3]["brief"].startswith(f"{slide.label}, cells {slide.probabilities[0]:.1f}, loss")


@pytest.mark.usefixtures("registered")
def test_what_a_task_cannot_read_or_do_is_said(counted, tmp_path):
    frame = pd.read_csv(counted, dtype=str)
    frame.loc[[4, 6], "cells"] = "many"
    with pytest.raises(RequestError, match="s04: 'many' is no number\n  s06: 'many' is no number"):
        train(counted.parent, frame, "cells", tmp_path / "run", task="count", **FAST)
    with pytest.raises(RequestError, match="the head clam-sb tells classes apart, and the target is a count"):
        train(counted.parent, counted, "cells", tmp_path / "clam", task="count", head="clam-sb", **FAST)
    with pytest.raises(RequestError, match="loss is 'focal', expected one of squared"):
        train(counted.parent, counted, "cells", tmp_path / "loss", task="count", loss="focal", **FAST)


def test_an_unknown_task_is_refused(counted, tmp_path):
    with pytest.raises(RequestError, match="task is 'count', expected one of classification"):
        train(counted.parent, counted, "cells", tmp_path / "run", task="count", **FAST)
    assert not (tmp_path / "run").exists() and "count" not in json.dumps(list(TASKS))
