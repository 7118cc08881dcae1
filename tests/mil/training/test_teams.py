"""Teams that are trained side by side end as they do one after another."""

import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mil.cohort.cohort import load_cohort
from mil.cohort.splits import make_folds
from mil.training import plan as planning
from mil.training.config import TrainConfig
from mil.training.descent import Descent
from mil.training.plan import plan_training
from mil.training.repeatable import repeatable
from mil.training.trainer import train_folds, train_groups

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _large(monkeypatch):
    """Bags of any size are large ones."""
    monkeypatch.setattr(planning, "_LARGE_STEP", 0)


def _planned(cohort, head, threads):
    config = TrainConfig(head=head, folds=2, epochs=1, inner_folds=2, loss="cross-entropy")
    folds = make_folds(cohort, config.split_plan())
    with repeatable(threads):
        plan = plan_training(cohort, folds, config, CPU)
    assert (plan.at_once, plan.threads) == (threads, 1)
    return config, plan


@pytest.mark.parametrize("head", ["gated-abmil", "transmil"])  # dropout by slide; by a generator
def test_the_same_models_come_out_of_several_threads(planted, head):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    results = []
    for threads in (1, 2):
        config, plan = _planned(cohort, head, threads)
        with repeatable(threads):
            results.append([train_folds(cohort, group, config, CPU, lambda *_: None, plan)[0] for group in plan.groups])
    for (one, of_one), (two, of_two) in zip(*results, strict=True):
        pd.testing.assert_frame_equal(of_one, of_two, check_exact=True)
        assert one.tensors.keys() == two.tensors.keys() and one.calibration == two.calibration
        assert all(np.array_equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


def test_two_threads_train_two_models_at_a_time_and_an_interrupt_ends_both(planted, monkeypatch):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    config, plan = _planned(cohort, "gated-abmil", 2)
    config = replace(config, epochs=10**6, patience=10**6)
    both, step = threading.Barrier(2), Descent._step

    def meet(self, *arguments):
        if not both.broken:
            both.wait(60)
        return step(self, *arguments)

    def interrupt(fold, values):
        both.abort()
        raise KeyboardInterrupt

    monkeypatch.setattr(Descent, "_step", meet)
    before = threading.active_count()
    with repeatable(2), pytest.raises(KeyboardInterrupt):
        list(train_groups(cohort, plan.groups, config, CPU, interrupt, plan))
    assert threading.active_count() == before
