"""Training is read from a run, and its loader from the seed."""

from dataclasses import replace

import numpy as np
from planted_cohorts import Plan

from mil.diagnosis.findings import training, wrong_labels
from mil.diagnosis.findings.training import loss_spikes, shuffling
from mil.run.tables import read_history, read_splits
from mil.training.command import train_mil
from mil.training.config import TrainConfig


def test_shuffling_and_spikes():
    labels = np.repeat([0, 1], 40)
    share, p = shuffling(labels, 0, 30)
    assert abs(share - 39 / 79) < 0.03 and p > 1e-3
    losses = np.linspace(1, 0.2, 20) + 0.001 * np.sin(np.arange(20))
    assert loss_spikes(losses) == []
    losses[11] += 0.8
    assert loss_spikes(losses) == [12]


def test_training_is_read_from_a_run(clean, tmp_path):
    config = TrainConfig(epochs=12, folds=2, inner_folds=0, bootstrap=100, head="mean")
    train_mil(clean.sources.features, clean.sources.table, "diagnosis", tmp_path / "run", config)
    inputs = replace(clean, sources=replace(clean.sources, run=tmp_path / "run"))
    history = read_history(tmp_path / "run", 1)
    slides = history["worst_step"][6].split()
    train = read_splits(tmp_path / "run").query("fold == 1 and split == 'train'")["slide_id"]
    assert 0 < len(slides) < len(train) and set(slides) <= set(train) and history["worst_step"].nunique() > 6
    history.loc[6, "train_loss"] += 1
    history.to_csv(tmp_path / "run/fold-1/history.csv", index=False)
    found = training.find(inputs)
    assert found.evidence["spike_slides"] == {"1": {}, "2": {7: slides}} and "spike, those of 1 model;" in found.verdict
    assert found.numbers["recall of tumour"]["value"] > 0.7 and len(found.pictures) == 2
    assert sum(int(row[2]) for row in found.details[0].rows) == Plan().slides
    wrong = wrong_labels.find(inputs)
    assert wrong.evidence["by"] == "linear probe"  # whose AUROC is 1, above the run's
    assert wrong.numbers["slides that look like another class, run"]["value"] < 0.2
