"""Regression: what it reads and refuses, how it standardises, and whether its ranges hold what they promise."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from mil import train
from mil.tasks.regression import SHARE, Regression, conformal_quantile
from mil.tasks.task import Target
from tiling.jobs.errors import RequestError
from tiling.manifest import load_table

FAST = dict(
    folds=3, inner_folds=3, epochs=40, embed_dim=16, attention_dim=4, bootstrap=100, device="cpu", learning_rate=0.005
)


def _read(values, **target):
    frame = pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(values))], "til": values})
    return Regression.read(load_table(frame, needs_path=False), Target("til", task="regression", **target), "t.csv")


def test_numbers_are_read_as_they_stand():
    task, targets = _read(["0.1", "1e-3", "-7", "12"])
    assert targets.dtype == np.float64 and targets.tolist() == [0.1, 0.001, -7, 12]
    assert [float(task.label(t)) for t in targets] == targets.tolist() and task.label(12.0) == "12"
    assert Regression.restored(task.provenance()) == Regression.restored(task.state()) == task


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["1", "many", "2", "3,5"], "row 3: til is 'many'.*\nrow 5: til is '3,5', expected a number"),
        (["1", "inf", "2"], "row 3: til is 'inf'"),
        (["1", "nan", "2"], "row 3: til is 'nan'"),
        (["4", "4.0", "4"], "all slides with features have til = 4 in t.csv"),
    ],
)
def test_what_is_no_number_is_refused_with_its_row(values, said):
    with pytest.raises(ValueError, match=said):
        _read(values)
    with pytest.raises(ValueError, match="--positive is for two classes"):
        _read(["1", "2"], positive="2")


@pytest.mark.parametrize("values", [np.arange(100.0), np.r_[np.zeros(70), np.arange(30.0)], np.r_[0.0, np.ones(40)]])
def test_strata_are_quantiles_and_never_less_than_two(values):
    (strata,) = Regression("til").strata(np.random.default_rng(0).permutation(values))
    of_slide, names = strata.of_slide, strata.names
    counts = np.bincount(of_slide)
    assert len(counts) == len(names) >= 2 and (counts > 0).all()
    if len(np.unique(values)) == 100:
        assert counts.tolist() == [25] * 4


def test_the_loss_is_of_standard_deviations_and_bears_outliers():
    task, targets = Regression("til"), np.array([10.0, 20, 30])
    terms = task.loss_terms(targets)
    assert terms.tolist() == pytest.approx([20, np.std(targets)])
    logits = torch.tensor([[0.0], [1.0], [-2.0]])
    z = (torch.from_numpy(targets) - 20) / np.std(targets)
    errors = (logits[:, 0] - z).abs()
    huber = torch.where(errors < 1, errors**2 / 2, errors - 0.5)
    assert task.criterion("huber", terms)(logits, torch.from_numpy(targets)).tolist() == pytest.approx(huber.tolist())
    squared = task.criterion("squared", terms)(logits, torch.from_numpy(targets))
    assert squared.tolist() == pytest.approx((errors**2).tolist())
    wanted = task.calibrated(z.numpy()[:, None], task.calibrate(np.empty((0, 1)), targets[:0], targets))
    assert wanted[:, 0] == pytest.approx(targets)


def test_ranges_hold_the_share_that_they_promise():
    """Coverage over 4,000 new numbers, mean of 200 calibrations on 30; in theory 28/31."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        width = conformal_quantile(np.abs(rng.standard_t(3, size=30)), SHARE)
        covered.append((np.abs(rng.standard_t(3, size=4000)) <= width).mean())
    assert np.mean(covered) == pytest.approx(28 / 31, abs=3 * np.std(covered) / np.sqrt(200))
    assert conformal_quantile(np.arange(8.0), SHARE) is None and conformal_quantile(np.arange(9.0), SHARE) == 8


def _cohort(folder, write_features, slides, seed, slope=1.0):
    """The number is a slide's share of patches shifted in feature 2, in percent, and normal noise of deviation 5."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = []
    for i in range(slides):
        share = rng.beta(2, 4)
        features = rng.normal(size=(60, 8))
        features[rng.random(60) < share, 2] += 3
        write_features(folder, f"s{i:03d}", features)
        rows.append((f"s{i:03d}", f"p{i // 2:03d}", round(slope * 100 * share + rng.normal() * 5, 2)))
    table = folder / "labels.csv"
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "til"]).to_csv(table, index=False)
    return table


def test_a_share_of_patches_is_learnt_in_its_own_unit(tmp_path, write_features):
    table = _cohort(tmp_path / "f", write_features, 90, 0)
    run = train(table.parent, table, "til", tmp_path / "run", task="regression", **FAST)
    slide = run.metrics["slide"]
    assert slide["r2"]["value"] > 0.5 and slide["mae"]["high"] < slide["mae_constant"]["low"]
    # 90 slides in ranges of their fold: within three deviations of a binomial share
    assert abs(slide["coverage"]["value"] - SHARE) < 3 * np.sqrt(SHARE * (1 - SHARE) / 90)
    found = run.predictions
    assert np.allclose(found["high"] - found["value"], found["value"] - found["low"])
    assert run.metrics["against_mean"].keys() >= {"value", "low", "high", "p", "mae"}
    assert {"lowest", "median", "highest"} <= run.metrics["counts"].keys()


def test_a_number_that_nothing_shows_is_not_predicted(tmp_path, write_features):
    table = _cohort(tmp_path / "f", write_features, 60, 1, slope=0.0)
    run = train(table.parent, table, "til", tmp_path / "run", task="regression", head="mean", **FAST)
    slide = run.metrics["slide"]
    # Nearly a constant, and that of a fold is the lower the higher its test slides are: ranks may go against them.
    assert -0.2 < slide["r2"]["low"] < slide["r2"]["high"] < 0.05
    assert slide["spearman"]["low"] < 0 and slide["spearman"]["high"] < 0.3
    assert "does not show that the model is better than a constant" in run.report.read_text()


def test_what_has_no_meaning_for_numbers_is_refused(tmp_path, write_features):
    table = _cohort(tmp_path / "f", write_features, 20, 2)
    for given, said in (
        (dict(label_smoothing=0.1), "label_smoothing spreads labels over classes, and the target is a regression"),
        (dict(loss="focal"), "loss is 'focal', expected one of huber, squared"),
        (dict(head="bag-stats"), "the head bag-stats tells classes apart"),
    ):
        with pytest.raises(RequestError, match=said):
            train(table.parent, table, "til", tmp_path / "run", task="regression", **{**FAST, **given})


def test_the_smallest_interval_of_errors_is_normal_theory_on_many():
    errors = np.abs(np.random.default_rng(1).normal(size=20_000))
    assert conformal_quantile(errors, SHARE) == pytest.approx(norm.ppf(0.95), abs=0.03)
