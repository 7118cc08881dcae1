"""A head is one module and one line of registration: a toy goes through training and prediction."""

import sys
from types import ModuleType

import pytest
from torch import nn

from mil import predict, train
from mil.heads.bags import segment_mean
from mil.heads.head import Head, MilOutput
from mil.heads.registry import HEADS


class Plain(Head):
    """The mean of a linear layer over patches."""

    def __init__(self, shape):
        super().__init__(shape)
        self.classify = nn.Linear(shape.dim_in, shape.n_classes)

    def forward(self, bags):
        patch_logits = self.classify(self.standardise(bags))
        attention = patch_logits.new_ones(len(patch_logits)) / patch_logits.new_tensor(bags.sizes)[bags.owners]
        return MilOutput(segment_mean(patch_logits, bags.sizes), attention, patch_logits)


def test_a_new_head_is_trained_and_used(planted, tmp_path, monkeypatch):
    module = ModuleType("mil.heads.zoo.plain")
    module.build = Plain
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(HEADS, "plain", "plain")
    settings = dict(folds=2, epochs=40, learning_rate=0.01, bootstrap=100, device="cpu")
    run = train(planted.parent, planted, "diagnosis", tmp_path / "run", head="plain", **settings)
    assert run.metrics["slide"]["auroc"]["value"] > 0.8 and run.provenance["settings"]["head"] == "plain"
    found = predict(run, planted.parent).table.set_index("slide_id")["prob_tumour"]
    assert found["s03"] == pytest.approx(run.predictions.set_index("slide_id").loc["s03", "prob_tumour"], abs=1e-6)
