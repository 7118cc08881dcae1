"""What is said of new slides is near the truth at the cohort's own prevalence; limits leave room for one small cohort.

tests/benchmarks/accuracy/accuracy_probabilities.py measures it on larger ones.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mil.cohort.cohort import load_cohort
from mil.cohort.splits import make_folds
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

TRAINING, NEW, CPU = 200, 400, torch.device("cpu")


@pytest.fixture(scope="module", params=[0.1, 0.5], ids=["a tenth positive", "half"])
def cohort(request, tmp_path_factory, write_features):
    """Two of eight patches show a positive slide."""
    folder, rng = tmp_path_factory.mktemp("rare"), np.random.default_rng(0)
    number = np.concatenate([np.arange(TRAINING) / TRAINING, np.arange(NEW) / NEW])
    ids = [f"s{i:03d}" for i in range(len(number))]
    for slide_id, positive in zip(ids, number < request.param, strict=True):
        features = rng.normal(size=(8, 6)) + 0.5 * rng.normal(size=6)
        features[:2, 0] += 3 * positive
        write_features(folder, slide_id, features)
    table = pd.DataFrame({"slide_id": ids, "diagnosis": np.where(number < request.param, "tumour", "normal")})
    table["split"] = ["train"] * TRAINING + ["test"] * NEW
    table.to_csv(folder / "labels.csv", index=False)
    return load_cohort(folder, folder / "labels.csv", "diagnosis")


@pytest.mark.parametrize("head", ["gated-abmil", "bag-stats"])
def test_probabilities_are_true(cohort, head, monkeypatch):
    """Their mean, their error beside that of always saying the share, and their slope (Cox 1958)."""
    monkeypatch.setattr("mil.heads.zoo.bag_stats._TREES", 50)
    config = TrainConfig(head=head, inner_folds=5, epochs=15, learning_rate=0.01, embed_dim=16, attention_dim=8)
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    [(checkpoint, _)] = train_folds(cohort, folds, config, CPU, lambda *_: None, plan)
    model, said, test = load_head(checkpoint, CPU), checkpoint.calibration, folds[0].test
    answers = [predict_slide(model, cohort.features[i], CPU, cohort.task, said).answer for i in test]
    p, truth = np.stack(answers)[:, 1], cohort.labels[test] == 1
    slope = LogisticRegression(C=np.inf).fit(np.log(p / (1 - p))[:, None], truth).coef_[0, 0]
    assert p.mean() == pytest.approx(truth.mean(), abs=0.03)  # of one cohort
    assert np.square(p - truth).mean() < 0.9 * truth.mean() * (1 - truth.mean())
    assert 0.7 < slope < 1.4  # 0.8 to 1.25 over several
