"""Models that are told of columns: what these add, what the slide adds, and that test slides have no say in it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mil import predict, train
from mil.cli.predict import main as predict_main
from mil.cli.train import main as train_main
from mil.cohort.cohort import load_cohort
from mil.cohort.splits import make_folds
from mil.evaluation.covariates import columns_alone
from mil.heads.bags import pack
from mil.heads.head import HeadShape
from mil.heads.registry import HEADS, build_head
from mil.tasks.losses import criterion
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds
from tiling.jobs.errors import RequestError

FAST = dict(folds=2, inner_folds=3, epochs=40, embed_dim=16, attention_dim=4, bootstrap=300, device="cpu")
BY_GRADIENT = [name for name in HEADS if name not in ("bag-stats", "needle")]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, write_features):
    """120 slides: half of them show it in 5 of 20 patches; `event` follows this and age, `plain` this alone."""
    folder, rng, rows = tmp_path_factory.mktemp("columns"), np.random.default_rng(3), []
    (folder / "f").mkdir()
    for i in range(120):
        features, shown, age = rng.normal(size=(20, 6)), i % 2, rng.normal()
        features[: 5 * shown, 1] += 4
        write_features(folder / "f", f"s{i:03d}", rng.permutation(features))
        months, followed = 20 * rng.exponential(np.exp(-2 * shown - 1.2 * age)), rng.uniform(2, 80)
        plain = "yes" if rng.random() < (0.2, 0.8)[shown] else "no"
        told = ("" if i % 11 == 5 else f"{60 + 10 * age:.1f}", rng.choice(["f", "m"]), f"{rng.normal():.2f}")
        rows.append(
            (f"s{i:03d}", f"p{i // 2:03d}", f"{min(months, followed):.1f}", int(months <= followed), plain, *told)
        )
    columns = ["slide_id", "patient_id", "months", "died", "plain", "age", "sex", "noise"]
    table = pd.DataFrame(rows, columns=columns).assign(patient_id=lambda t: t["slide_id"])
    table.to_csv(folder / "slides.csv", index=False)
    return folder


def _train(cohort, target, out, **more):
    return train(cohort / "f", cohort / "slides.csv", target, out, **{"learning_rate": 0.005, **FAST, **more})


@pytest.fixture(scope="module")
def survived(cohort):
    return _train(cohort, "months", cohort / "run", task="survival", event="died", covariates="age,sex")


def test_a_hazard_that_a_column_and_patches_show_is_found_best_by_both(survived):
    metrics = survived.metrics
    both, slide, columns = (
        metrics["slide"]["c_index"]["value"],
        metrics["against_slide"]["c_index"]["value"],
        metrics["against_columns"]["c_index"]["value"],
    )
    assert both > slide > 0.6 and both > columns > 0.6
    for name, alone in (("slide", slide), ("columns", columns)):
        found = metrics[f"against_{name}"]
        assert found["value"] == pytest.approx(both - alone) and found["low"] > 0 and found["p"] < 0.05
    page = survived.report.read_text()
    assert 'id="columns"' in page and "What the slide adds" in page and "age, sex alone" in page


def test_the_slide_alone_is_the_run_without_columns_and_a_column_of_noise_adds_nothing(cohort, tmp_path):
    told = _train(cohort, "plain", tmp_path / "told", covariates="noise")
    plain = _train(cohort, "plain", tmp_path / "plain")
    alone = pd.read_csv(tmp_path / "told/predictions_slide_alone.csv")
    assert (alone["prob_yes"].to_numpy() == plain.predictions["prob_yes"].to_numpy()).all()
    assert told.metrics["against_slide"]["auroc"] == plain.metrics["slide"]["auroc"]
    assert told.metrics["against_slide"]["low"] < 0 < told.metrics["against_slide"]["high"]
    assert told.metrics["against_columns"]["low"] > 0


def test_columns_of_test_slides_have_no_say_in_the_model(cohort):
    config = TrainConfig(**{**FAST, "epochs": 3}, covariates="age,sex,noise")
    loaded = load_cohort(cohort / "f", cohort / "slides.csv", "plain", covariates=config.covariate_names())
    fold = make_folds(loaded, config.split_plan())[0]
    values = loaded.covariates.values.copy()
    values[fold.test] *= 1000
    changed = replace(loaded, covariates=replace(loaded.covariates, values=values))
    plan = plan_training(loaded, [fold], config, torch.device("cpu"))
    (first, _), (second, _) = (
        train_folds(of, [fold], config, torch.device("cpu"), lambda fold, values: None, plan)[0]
        for of in (loaded, changed)
    )
    assert first.calibration == second.calibration
    assert all((first.tensors[name] == second.tensors[name]).all() for name in first.tensors)
    member = fold.members[1]
    into, shift = loaded.covariates.columns.encoding(loaded.covariates.values[member.train])
    assert first.tensors["members.1.into"] == pytest.approx(into, abs=1e-5)
    assert first.tensors["members.1.shift"] == pytest.approx(shift, abs=1e-5)
    assert np.abs(first.tensors["members.1.weights"]).max() > 0


def test_columns_of_test_slides_have_no_say_in_the_plain_model(cohort):
    loaded = load_cohort(cohort / "f", cohort / "slides.csv", "plain", covariates=["age", "sex", "noise"])
    folds = make_folds(loaded, TrainConfig(**FAST).split_plan())
    values = loaded.covariates.values.copy()
    changed = folds[1].test[4]
    values[changed] *= 1000
    first = columns_alone(loaded, loaded.covariates, folds[1:])
    second = columns_alone(loaded, replace(loaded.covariates, values=values), folds[1:])
    others = first["slide_id"] != loaded.slide_ids[changed]
    assert (first[others] == second[others]).all(axis=None) and not first.equals(second)


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a_term_is_added_to_the_logits_of_every_head_and_to_nothing_else(name):
    torch.manual_seed(0)
    shape = HeadShape(5, 3, 8, 4, 0.0, covariates=2)
    head = build_head(name, shape).eval()
    head.encode_by(torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([1.0, -1]))
    torch.nn.init.normal_(head.weights)
    features, told = [torch.randn(4, 5), torch.randn(7, 5)], torch.tensor([[0.5, 3.0], [1.0, -2.0]])
    output, of_slide = head(pack(features, told)), head.of_slide(pack(features))
    term = 8**0.5 * torch.tensor([[2.0, 2.0], [3.0, -3.0]]) @ head.weights
    torch.testing.assert_close(output.logits, of_slide.logits + term)
    for shown in ("attention", "patch_logits", "class_attention", "contributions"):
        torch.testing.assert_close(getattr(output, shown), getattr(of_slide, shown))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(pack(features, told)).term, output.term, rtol=0, atol=0)
    labels = torch.tensor([0, 2])
    losses = head.bag_losses(output, pack(features, told), labels, criterion("cross-entropy", torch.ones(3)))
    gradient = torch.autograd.grad(losses.sum(), head.weights)[0]
    assert (gradient.abs() > 1e-4).all()


def test_models_that_are_trained_together_end_like_one_after_another(cohort, tmp_path):
    some = pd.read_csv(cohort / "slides.csv", dtype=str, keep_default_na=False)[:40]
    ways = (dict(parallel_models=1), dict(parallel_models=6), dict(precision="bf16"))
    settings = dict(covariates="age,noise", **FAST | dict(epochs=6))
    first, second, rounded = (
        train(cohort / "f", some, "plain", tmp_path / str(i), **settings, **way).predictions["prob_yes"]
        for i, way in enumerate(ways)
    )
    assert first.to_numpy() == pytest.approx(second.to_numpy(), abs=1e-4)
    assert first.to_numpy() == pytest.approx(rounded.to_numpy(), abs=0.1)


def test_new_slides_need_the_columns(survived, cohort, tmp_path):
    table = pd.read_csv(cohort / "slides.csv", dtype=str, keep_default_na=False)
    with pytest.raises(RequestError, match=r"trained with the columns age, sex; give the slide table .*--slides TABLE"):
        predict(survived, cohort / "f")
    with pytest.raises(RequestError, match="the slide table has no 'age'; add the column, with empty cells"):
        predict(survived, cohort / "f", table.drop(columns="age"))
    usual = predict(survived, cohort / "f", table)
    assert usual.warnings == () and not usual.failures
    table.loc[7, "sex"], table.loc[8, "sex"] = "unknown", ""
    found = predict(survived, cohort / "f", table.drop(index=3))
    assert found.failures == {"s003": "s003: not in the slide table, so its columns are not known; add a row"}
    assert found.warnings[0].startswith("sex 'unknown' was in no slide that the run was trained on and counts as miss")
    table.loc[7, "sex"] = ""
    empty = predict(survived, cohort / "f", table.drop(index=3))
    assert empty.warnings == () and empty.table.equals(found.table)
    table["age"] = "90"
    older = predict(survived, cohort / "f", table).table
    assert (older["risk"] > usual.table["risk"])[table["age"].notna()].mean() > 0.9


def test_what_cannot_be_told_is_refused(cohort, tmp_path):
    for number, (more, said) in enumerate(
        (
            (
                dict(head="bag-stats"),
                "the head bag-stats is not trained by gradient and cannot be told of columns; leave",
            ),
            (dict(head="auto"), "the head bag-stats is not trained by gradient"),
            (dict(covariates="age,plain"), "--covariates: plain is what is to be predicted"),
            (dict(covariates="age,age"), "covariates is 'age,age', expected each column once"),
        )
    ):
        with pytest.raises(RequestError, match=said):
            _train(cohort, "plain", tmp_path / f"{number}", **{"covariates": "age", **more})


def test_the_commands_tell_what_adds_what(cohort, tmp_path, capsys):
    table, out = str(cohort / "slides.csv"), str(tmp_path / "run")
    asked = [str(cohort / "f"), "--labels", table, "--target", "plain", "--covariates", "age,sex", "--out", out]
    with pytest.raises(SystemExit) as ended:
        train_main([*asked, "--folds", "2", "--epochs", "3", "--bootstrap", "100", "--device", "cpu"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "against the columns alone (0." in said and "against the slide alone (0." in said
    with pytest.raises(SystemExit) as ended:
        predict_main([out, str(cohort / "f"), "--out", str(tmp_path / "new.csv"), "--slides", table])
    assert ended.value.code == 0 and len(pd.read_csv(tmp_path / "new.csv")) == 120
