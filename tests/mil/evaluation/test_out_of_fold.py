"""Figures of a run, from tables whose figures are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mil.evaluation.out_of_fold import by_fold
from mil.metrics.bootstrap import Bootstrap
from mil.tasks.classification import Classification


def test_figures_by_fold_are_those_of_its_rows():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=60), rng.random(60)
    table = pd.DataFrame(
        {
            **{"patient_id": [f"p{i // 2}" for i in range(60)], "repeat": 0, "fold": np.arange(60) // 2 % 3},
            "label": np.array(["neg", "pos"])[labels],
            "prediction": np.where(scores > 0.5, "pos", "neg"),
            **{"prob_neg": 1 - scores, "prob_pos": scores},
        }
    )
    got = by_fold(Classification(("neg", "pos"), 1), table, Bootstrap(100))
    assert [(f["repeat"], f["fold"], f["rows"]) for f in got] == [(0, 0, 20), (0, 1, 20), (0, 2, 20)]
    own = table[table["fold"] == 1]
    assert got[1]["auroc"]["value"] == pytest.approx(roc_auc_score(own["label"] == "pos", own["prob_pos"]))
