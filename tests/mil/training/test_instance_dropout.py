"""Instance dropout: which patches stay depends on seed, epoch and slide alone, and only training leaves any out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil.cohort.cohort import load_cohort
from mil.cohort.splits import make_folds
from mil.heads.bags import pack
from mil.heads.dropout import Noise
from mil.training import descent
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

CPU = torch.device("cpu")


@given(seed=st.integers(0, 9), slide=st.integers(0, 99), patches=st.integers(1, 300), dropped=st.floats(0, 0.999))
def test_which_patches_stay(seed, slide, patches, dropped):
    kept = Noise(seed).instances(slide, patches, dropped, epoch=3)
    assert len(kept) == max(1, round(patches * (1 - dropped)))
    assert (kept.diff() > 0).all() and kept[0] >= 0 and kept[-1] < patches
    assert torch.equal(kept, Noise(seed).instances(slide, patches, dropped, epoch=3))


def test_each_patch_stays_as_often_and_each_epoch_and_slide_has_its_own():
    noise = Noise(0)
    counts = sum(np.bincount(noise.instances(5, 40, 0.75, epoch), minlength=40) for epoch in range(2000))
    assert counts.sum() == 2000 * 10
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)
    draws = {tuple(noise.instances(slide, 40, 0.75, epoch).tolist()) for slide in range(9) for epoch in range(9)}
    assert len(draws) == 81 and tuple(Noise(1).instances(0, 40, 0.75, 0).tolist()) not in draws


def test_only_training_leaves_patches_out(planted, monkeypatch):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    config = TrainConfig(folds=2, epochs=2, instance_dropout=0.75)
    folds = make_folds(cohort, config.split_plan())
    seen = []

    def spy(features, covariates):
        bags = pack(features, covariates)
        seen.append((torch.is_grad_enabled(), bags.sizes))
        return bags

    plan = plan_training(cohort, folds, config, CPU)
    monkeypatch.setattr(descent, "pack", spy)
    train_folds(cohort, folds, config, CPU, lambda *_: None, plan)
    sizes = {len(features) for features in cohort.features}
    assert {n for train, of in seen if not train for n in of} == sizes
    assert {n for train, of in seen if train for n in of} == {round(n / 4) for n in sizes}


def test_models_trained_together_equal_models_trained_alone(planted):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    config = TrainConfig(folds=3, epochs=4, instance_dropout=0.5)
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    together = train_folds(cohort, folds, config, CPU, lambda *_: None, plan)
    for fold, (_, history) in zip(folds, together, strict=True):
        ((_, alone),) = train_folds(cohort, [fold], config, CPU, lambda *_: None, plan)
        assert history["train_loss"].tolist() == pytest.approx(alone["train_loss"].tolist(), rel=1e-4)
        assert history["val_loss"].tolist() == pytest.approx(alone["val_loss"].tolist(), rel=1e-4)
