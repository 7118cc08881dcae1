"""Findings on features: planted faults are found by the right finding, and the clean cohort raises no alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_cohorts import DIM, Plan, planted_inputs

from mil.diagnosis.findings import (
    copied_labels,
    duplicates,
    helpful_slides,
    scale,
    shortcut,
    signal,
    training,
    wrong_labels,
)
from mil.diagnosis.findings.training import loss_spikes, shuffling
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.witness import witness_rate
from mil.run.tables import read_history, read_splits
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError

SEED = Plan().seed
SLIDES = Plan().slides
Build = Callable[..., Inputs]


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    """build(fault, …) -> Inputs of a planted cohort, see Plan."""

    def make(fault: str = "", **plan: float) -> Inputs:
        return planted_inputs(tmp_path_factory.mktemp(fault or "clean"), Plan(fault, **plan))

    return make


@pytest.fixture(scope="module")
def clean(build):
    return build()


def test_the_clean_cohort_raises_no_alarm(clean):
    found = [f(clean) for f in (duplicates.find, signal.find, shortcut.find, wrong_labels.find)]
    assert [(f.key, f.severity) for f in found if f.severity != "fine"] == []
    doubled = found[1].numbers["expected AUROC with twice the patients"]
    assert found[1].numbers["AUROC of averaged features"]["value"] > 0.95 and doubled["high"] > 0.97
    assert found[2].numbers["site from features: AUROC"]["low"] > 0.6  # it is seen, and does no harm


def test_no_signal_is_found_where_labels_are_shuffled(build):
    found = signal.find(build("permuted"))
    assert found.severity == "fault" and "No signal" in found.verdict
    assert found.numbers["AUROC of the best of average, spread and extremes"]["p"] > 0.05


def test_a_site_that_goes_with_the_label_is_found(build):
    found = shortcut.find(build("site"))
    assert found.severity == "fault" and "site" in found.verdict
    assert found.numbers["label from site: AUROC"]["value"] > 0.9


def test_wrong_labels_are_found_and_come_first(build):
    inputs = build("flipped")
    found = wrong_labels.find(inputs)
    assert found.severity == "look"
    wrong = Plan().flipped(inputs.cohort.labels)
    first = found.evidence["order"][: round(0.3 * SLIDES)]
    assert len(wrong) == SLIDES // 5 and len(wrong & set(first)) >= 0.7 * len(wrong)
    share = found.numbers["estimated share of wrong labels, linear probe"]
    assert share["low"] <= 0.2 <= share["high"]
    harmed = helpful_slides.find(inputs)
    worst = sorted(harmed.evidence["harm"], key=harmed.evidence["harm"].get)[::-1][: len(wrong)]
    assert len(wrong & set(worst)) >= 0.5 * len(wrong)


def test_patients_under_other_ids_are_found(build):
    found = duplicates.find(build("twice"))
    assert found.severity == "fault" and found.numbers["of them under different patients"]["value"] == 2


@pytest.mark.parametrize(("rate", "patches"), [(0.5, 30), (0.1, 100)])
def test_the_true_witness_rate_lies_inside_its_interval(build, rate, patches):
    inputs = build("rare", witness=rate, patches=patches)
    found = witness_rate(inputs.cohort, 1, parts_of(inputs.folds), 200, 0).rate
    assert found["low"] <= rate <= found["high"] and found["high"] - found["low"] < 0.4


def test_copied_labels_are_held_against_mil(build, monkeypatch):
    monkeypatch.setattr(copied_labels, "_STEPS", 60)
    inputs = build("rare", witness=0.2, patches=40)
    found = copied_labels.find(replace(inputs, folds=inputs.folds[:2]))
    assert found.numbers["gated-abmil: AUROC of slides"]["value"] > 0.8
    patch = found.numbers["patch-label-copy: accuracy of patches, by copied labels"]["value"]
    assert 0.45 < patch < 0.75  # four in five copied labels of tumour slides are wrong
    assert found.numbers["witness rate"]["high"] < 0.5


def test_shuffling_and_spikes():
    labels = np.repeat([0, 1], 40)
    share, p = shuffling(labels, 0, 30)
    assert abs(share - 39 / 79) < 0.03 and p > 1e-3
    losses = np.linspace(1, 0.2, 20) + 0.001 * np.sin(np.arange(20))
    assert loss_spikes(losses) == []
    losses[11] += 0.8
    assert loss_spikes(losses) == [12]


def _at(inputs: Inputs, other: Path) -> Inputs:
    return replace(inputs, sources=replace(inputs.sources, scales=(other,)))


def test_the_scale_at_which_slides_are_told_apart_is_named(build, write_features, tmp_path):
    inputs = build("rare", witness=0.0)
    rng = np.random.default_rng(SEED)
    for i, name in enumerate(inputs.cohort.slide_ids[:-4]):  # the coarse scale lacks four slides
        bag = rng.normal(size=(8, DIM)) + 1.5 * inputs.cohort.labels[i]
        write_features(tmp_path / "coarse", str(name), bag, mpp=1.0)
        write_features(tmp_path / "other", str(name), bag, mpp=1.0, encoder="resnet18")
    found = scale.find(_at(inputs, tmp_path / "coarse"))
    assert found.severity == "look" and "better at 1 µm/px than at 0.5 µm/px" in found.verdict
    assert found.numbers["AUROC at 1 µm/px"]["low"] > 0.9 > found.numbers["AUROC at 0.5 µm/px"]["value"]
    assert found.evidence["slides"] == SLIDES - 4 and "--mpp 1 " in found.remedy
    good = build("rare")
    kept = scale.find(_at(good, inputs.sources.features))  # the same scale twice, once without signal
    assert kept.severity == "fine" and kept.numbers["gain at the best scale"]["value"] == 0
    with pytest.raises(RequestError, match="encoder is 'resnet18', expected 'resnet50'"):
        scale.find(_at(inputs, tmp_path / "other"))


def test_training_is_read_from_a_run(clean, tmp_path):
    from mil.training.command import train_mil

    config = TrainConfig(epochs=12, folds=2, bootstrap=100, head="mean")
    train_mil(clean.sources.features, clean.sources.table, "diagnosis", tmp_path / "run", config)
    inputs = replace(clean, sources=replace(clean.sources, run=tmp_path / "run"))
    history = read_history(tmp_path / "run", 1)
    slides = history["worst_step"][6].split()
    train = read_splits(tmp_path / "run").query("fold == 1 and split == 'train'")["slide_id"]
    assert 0 < len(slides) < len(train) and set(slides) <= set(train) and history["worst_step"].nunique() > 6
    history.loc[6, "train_loss"] += 1
    history.to_csv(tmp_path / "run/fold-1/history.csv", index=False)
    found = training.find(inputs)
    assert found.evidence["spike_slides"] == {0: {}, 1: {7: slides}} and "1 fold(s) spikes" in found.verdict
    assert found.numbers["recall of tumour"]["value"] > 0.7 and len(found.pictures) == 2
    assert sum(int(row[2]) for row in found.details[0].rows) == SLIDES
    wrong = wrong_labels.find(inputs)
    assert wrong.evidence["by"] == "linear probe"  # whose AUROC is 1, above the run's
    assert wrong.numbers["slides that look like another class, run"]["value"] < 0.2
