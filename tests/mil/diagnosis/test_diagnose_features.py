"""Findings on features: planted faults are found by the right finding, and the clean cohort raises no alarm."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mil.cohort.cohort import load_cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.findings import copied_labels, helpful_slides
from mil.diagnosis.findings.copied_labels import find_copied_labels
from mil.diagnosis.findings.duplicates import find_duplicates
from mil.diagnosis.findings.helpful_slides import find_helpful_slides
from mil.diagnosis.findings.scale import find_scale
from mil.diagnosis.findings.shortcut import find_shortcut, holm
from mil.diagnosis.findings.signal import find_signal
from mil.diagnosis.findings.training import find_training, loss_spikes, shuffling
from mil.diagnosis.findings.wrong_labels import find_wrong_labels
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.influence import influences
from mil.diagnosis.numbers.learning_curve import power_law
from mil.diagnosis.numbers.ridge import aurocs_within_folds, kernel, out_of_fold, parts_of
from mil.diagnosis.numbers.suspects import confident_learning
from mil.diagnosis.numbers.witness import witness_rate
from mil.run.tables import read_history, read_splits
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError

SLIDES, PATCHES, DIM = 64, 30, 12
SEED = 77  # no threshold was chosen on it
Build = Callable[..., Inputs]


@pytest.fixture(scope="module")
def build(tmp_path_factory, write_features) -> Build:
    """build(fault) -> Inputs of 64 patients with one slide each; half of the patches of a tumour slide show it."""

    def make(fault: str = "", witness: float = 0.5, patches: int = PATCHES) -> Inputs:
        folder = tmp_path_factory.mktemp(fault or "clean")
        rng = np.random.default_rng(SEED)
        truth = np.arange(SLIDES) % 2
        label = truth.copy()
        site = (
            rng.permutation(np.arange(SLIDES) // 2 % 4) if fault != "site" else truth * 2 + rng.integers(0, 2, SLIDES)
        )
        if fault == "flipped":
            wrong = rng.permutation(SLIDES)[: SLIDES // 5]
            label[wrong] = 1 - label[wrong]
        if fault == "permuted":
            label = rng.permutation(label)
        bags = []
        for i in range(SLIDES):
            bag = rng.normal(size=(patches, DIM)) + 0.1 * rng.normal(size=DIM)
            if truth[i] and fault != "site":
                bag[: round(witness * patches), :2] += 3
            bag[:, 4] += 0.8 * (site[i] % 4)
            bags.append(bag)
        if fault == "twice":
            bags[10], bags[21] = bags[40][::-1], bags[33] + 1e-3
        for i, bag in enumerate(bags):
            write_features(folder, f"s{i:02d}", bag)
        table = pd.DataFrame({"slide_id": [f"s{i:02d}" for i in range(SLIDES)]})
        table["patient_id"] = table["slide_id"].str.replace("s", "p")
        table["diagnosis"] = np.array(["normal", "tumour"])[label]
        table["site"] = np.array(["A", "B", "C", "D"])[site]
        table["scanner"], table["stain"] = rng.choice(["X", "Y"], (2, SLIDES))  # several that do not go with the label
        table["jpeg_quality"], table["batch"] = rng.integers(70, 95, SLIDES), rng.integers(0, 5, SLIDES)
        table.to_csv(folder / "labels.csv", index=False)
        cohort = load_cohort(folder, folder / "labels.csv", "diagnosis")
        folds = tuple(make_folds(cohort, SplitPlan()))
        config = DiagnoseConfig(bootstrap=200, permutations=199)
        return Inputs(folder, folder / "labels.csv", "diagnosis", cohort, folds, config)

    return make


@pytest.fixture(scope="module")
def clean(build):
    return build()


def test_the_clean_cohort_raises_no_alarm(clean):
    found = [f(clean) for f in (find_duplicates, find_signal, find_shortcut, find_wrong_labels)]
    assert [(f.key, f.severity) for f in found if f.severity != "fine"] == []
    doubled = found[1].numbers["expected AUROC with twice the patients"]
    assert found[1].numbers["AUROC of averaged features"]["value"] > 0.95 and doubled["high"] > 0.97
    assert found[2].numbers["site from features: AUROC"]["low"] > 0.6  # it is seen, and does no harm


def test_no_signal_is_found_where_labels_are_shuffled(build):
    found = find_signal(build("permuted"))
    assert found.severity == "fault" and "No signal" in found.verdict
    assert found.numbers["AUROC of the best of average, spread and extremes"]["p"] > 0.05


def test_a_site_that_goes_with_the_label_is_found(build):
    found = find_shortcut(build("site"))
    assert found.severity == "fault" and "site" in found.verdict
    assert found.numbers["label from site: AUROC"]["value"] > 0.9


def test_wrong_labels_are_found_and_come_first(build):
    inputs = build("flipped")
    found = find_wrong_labels(inputs)
    assert found.severity == "look"
    wrong = {f"s{i:02d}" for i in np.flatnonzero(inputs.cohort.labels != np.arange(SLIDES) % 2)}
    first = found.evidence["order"][: round(0.3 * SLIDES)]
    assert len(wrong) == SLIDES // 5 and len(wrong & set(first)) >= 0.7 * len(wrong)
    share = found.numbers["estimated share of wrong labels, linear probe"]
    assert share["low"] <= 0.2 <= share["high"]
    harmed = find_helpful_slides(inputs)
    worst = sorted(harmed.evidence["harm"], key=harmed.evidence["harm"].get)[::-1][: len(wrong)]
    assert len(wrong & set(worst)) >= 0.5 * len(wrong)


def test_patients_under_other_ids_are_found(build):
    found = find_duplicates(build("twice"))
    assert found.severity == "fault" and found.numbers["of them under different patients"]["value"] == 2


@pytest.mark.parametrize(("rate", "patches"), [(0.5, 30), (0.1, 100)])
def test_the_true_witness_rate_lies_inside_its_interval(build, rate, patches):
    inputs = build("rare", rate, patches)
    found = witness_rate(inputs.cohort, 1, parts_of(inputs.folds), 200, 0).rate
    assert found["low"] <= rate <= found["high"] and found["high"] - found["low"] < 0.4


def test_copied_labels_are_held_against_mil(build, monkeypatch):
    monkeypatch.setattr(copied_labels, "_STEPS", 60)
    inputs = build("rare", 0.2, 40)
    found = find_copied_labels(replace(inputs, folds=inputs.folds[:2]))
    assert found.numbers["gated-abmil: AUROC of slides"]["value"] > 0.8
    patch = found.numbers["patch-label-copy: accuracy of patches, by copied labels"]["value"]
    assert 0.45 < patch < 0.75  # four in five copied labels of tumour slides are wrong
    assert found.numbers["witness rate"]["high"] < 0.5


def test_leaving_a_slide_out_equals_plain_training():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    truth = x[:, 0] + rng.normal(size=30) > 0
    train, test = np.arange(20), np.arange(20, 30)
    changes, estimated, losses = influences(x, truth, [(train, test)], 0.3, np.ones(30, bool))
    scaled = (x - x[train].mean(0)) / x[train].std(0)

    def plain(rows):
        model = LogisticRegression(C=0.3, class_weight="balanced", tol=1e-10, max_iter=10_000)
        scores = model.fit(scaled[rows], truth[rows]).decision_function(scaled[test])
        return np.logaddexp(0, scores) - scores * truth[test]

    np.testing.assert_allclose(losses[test], plain(train), atol=1e-5)
    for i in train:
        np.testing.assert_allclose(changes[i, test], plain(np.delete(train, i)) - plain(train), atol=1e-4)
    assert np.corrcoef(changes[:20, 20:].mean(1), estimated[:20, 20:].mean(1))[0, 1] > 0.95
    assert np.isnan(changes[test]).all() and np.isnan(changes[:, train]).all()


def test_a_larger_cohort_is_estimated_and_the_estimate_agrees_with_retraining(clean, monkeypatch):
    exact = find_helpful_slides(clean)
    agreement = exact.numbers["rank agreement of estimate and retraining"]
    assert agreement["value"] > 0.95 and agreement["low"] > 0.9 and exact.severity == "fine"
    monkeypatch.setattr(helpful_slides, "_EXACT", SLIDES - 1)
    monkeypatch.setattr(helpful_slides, "_SAMPLE", 20)
    found = find_helpful_slides(clean)
    assert exact.evidence["way"] == "left out by exact retraining" and found.evidence["way"] == "by influence functions"
    assert found.evidence["harm"] != exact.evidence["harm"]  # but in the same order
    assert pd.Series(found.evidence["harm"]).corr(pd.Series(exact.evidence["harm"]), method="spearman") > 0.95
    assert found.numbers["rank agreement of estimate and retraining"]["value"] > 0.95


def test_ridge_equals_the_normal_equations():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    patients, train, test = np.arange(24).astype(str), np.arange(18), np.arange(18, 24)
    scores = out_of_fold(kernel(x), y, patients, [(train, test)])
    scaled = (x - x.mean(0)) / x.std(0)
    centred = scaled[train] - scaled[train].mean(0)
    size = np.trace(centred @ centred.T) / 18
    each = [
        (scaled[test] - scaled[train].mean(0))
        @ np.linalg.solve(centred.T @ centred + p * size * np.eye(5), centred.T @ (y[train] - y[train].mean(0)))
        + y[train].mean(0)
        for p in (0.01, 0.1, 1.0, 10.0)
    ]
    for column in range(3):
        assert min(np.abs(scores[test, column] - own[:, column]).max() for own in each) < 1e-10


def test_auroc_is_over_pairs_within_a_fold():
    scores = np.array([[0.1], [0.9], [5.0], [6.0], [6.0]])
    truth = np.array([[False], [True], [True], [False], [False]])
    folds = [(np.arange(2), np.arange(2)), (np.arange(2), np.arange(2, 5))]
    assert aurocs_within_folds(scores, truth, folds)[0] == pytest.approx(1 / 3)


def test_a_power_law_is_recovered():
    n = np.array([10.0, 20, 40, 80, 160])
    np.testing.assert_allclose(power_law(n, 0.9 - 1.2 * n**-0.7, np.array([320.0])), 0.9 - 1.2 * 320**-0.7, atol=1e-6)


def test_holm_and_confident_learning_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.95])
    found = confident_learning(np.stack([1 - p, p], axis=1), np.array([1, 1, 1, 0, 0, 0]))
    assert found.order[0] == 5 and found.order[1] == 2
    assert found.counted.tolist() == [False, False, True, False, False, True]


def test_shuffling_and_spikes():
    labels = np.repeat([0, 1], 40)
    share, p = shuffling(labels, 0, 30)
    assert abs(share - 39 / 79) < 0.03 and p > 1e-3
    losses = np.linspace(1, 0.2, 20) + 0.001 * np.sin(np.arange(20))
    assert loss_spikes(losses) == []
    losses[11] += 0.8
    assert loss_spikes(losses) == [12]


def test_the_scale_at_which_slides_are_told_apart_is_named(build, write_features, tmp_path):
    inputs = build("rare", 0.0)
    rng = np.random.default_rng(SEED)
    for i, name in enumerate(inputs.cohort.slide_ids[:-4]):  # the coarse scale lacks four slides
        bag = rng.normal(size=(8, DIM)) + 1.5 * inputs.cohort.labels[i]
        write_features(tmp_path / "coarse", str(name), bag, mpp=1.0)
        write_features(tmp_path / "other", str(name), bag, mpp=1.0, encoder="resnet18")
    found = find_scale(replace(inputs, scales=(tmp_path / "coarse",)))
    assert found.severity == "look" and "better at 1 µm/px than at 0.5 µm/px" in found.verdict
    assert found.numbers["AUROC at 1 µm/px"]["low"] > 0.9 > found.numbers["AUROC at 0.5 µm/px"]["value"]
    assert found.evidence["slides"] == SLIDES - 4 and "--mpp 1 " in found.remedy
    good = build("rare", 0.5)
    kept = find_scale(replace(good, scales=(inputs.folder,)))  # the same scale twice, once without signal
    assert kept.severity == "fine" and kept.numbers["gain at the best scale"]["value"] == 0
    with pytest.raises(RequestError, match="encoder is 'resnet18', expected 'resnet50'"):
        find_scale(replace(inputs, scales=(tmp_path / "other",)))


def test_training_is_read_from_a_run(clean, tmp_path):
    from mil.training.command import train_mil

    config = TrainConfig(epochs=12, folds=2, bootstrap=100, head="mean")
    train_mil(clean.folder, clean.table, "diagnosis", tmp_path / "run", config)
    inputs = replace(clean, run=tmp_path / "run")
    history = read_history(tmp_path / "run", 1)
    slides = history["worst_step"][6].split()
    train = read_splits(tmp_path / "run").query("fold == 1 and split == 'train'")["slide_id"]
    assert 0 < len(slides) < len(train) and set(slides) <= set(train) and history["worst_step"].nunique() > 6
    history.loc[6, "train_loss"] += 1
    history.to_csv(tmp_path / "run/fold-1/history.csv", index=False)
    found = find_training(inputs)
    assert found.evidence["spike_slides"] == {0: {}, 1: {7: slides}} and "1 fold(s) spikes" in found.verdict
    assert found.numbers["recall of tumour"]["value"] > 0.7 and len(found.pictures) == 2
    assert sum(int(row[2]) for row in found.details[0].rows) == SLIDES
    wrong = find_wrong_labels(inputs)
    assert wrong.evidence["by"] == "linear probe"  # whose AUROC is 1, above the run's
    assert wrong.numbers["slides that look like another class, run"]["value"] < 0.2
