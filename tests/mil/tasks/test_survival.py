"""Survival: what it reads and refuses, its loss against a loop, its calibration, and cohorts of known hazard."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import nelson_aalen_estimator

from mil import train
from mil.cli.train import main
from mil.metrics.survival import Followed, kaplan_meier_at
from mil.tasks.survival import Survival
from mil.tasks.task import Target
from mil.training.config import TrainConfig
from tiling.manifest import load_table

FAST = dict(
    folds=3, inner_folds=3, epochs=40, embed_dim=16, attention_dim=4, bootstrap=200, device="cpu", learning_rate=0.005
)
TASK = Survival("months", "died", (2.0, 5.0, 9.0))


def _read(months, died, patients=None, event="died"):
    frame = pd.DataFrame({"slide_id": [f"s{i:02d}" for i in range(len(months))], "months": months, "died": died})
    if patients is not None:
        frame["patient_id"] = patients
    rows = load_table(frame, needs_path=False)
    return Survival.read(rows, Target("months", task="survival", event=event), "t.csv")


def test_times_and_events_are_read_as_they_stand():
    months = [f"{m:g}" for m in np.arange(24) + 0.5]
    task, targets = _read(months, ["1", "0"] * 12)
    assert targets[:3].tolist() == [[0.5, 1], [1.5, 0], [2.5, 1]]
    assert [task.label(t) for t in targets[:2]] == ["0.5", "1.5+"]
    assert task.times[0] == pytest.approx(2.7) and len(task.times) == 9 and list(task.times) == sorted(task.times)
    assert Survival.restored(task.provenance()) == task


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"months": {3: "-1", 5: "soon"}},
            "row 7: months is 'soon', expected a number.*\nrow 5: months is -1, expected 0",
        ),
        ({"died": {2: "yes", 4: ""}}, "row 4: died is 'yes', expected 1 .seen. or 0.*\nrow 6: died is ''"),
        ({"died": dict.fromkeys(range(24), "0")}, "died is 1 for 0 of 24; 10 are needed"),
        ({"patients": {3: "p01"}}, "row 5: patient 'p01' has months '4' here and '2' in row 3"),
        ({"event": "dead"}, "no column 'dead' in t.csv; --event names .*; the label columns are 'months', 'died'"),
    ],
)
def test_faults_are_told_with_their_rows(changes, said):
    columns = {"months": [f"{i + 1}" for i in range(24)], "died": ["1", "1", "0"] * 8}
    columns["patients"] = [f"p{i:02d}" for i in range(24)]
    for name in columns.keys() & changes.keys():
        columns[name] = [changes[name].get(i, value) for i, value in enumerate(columns[name])]
    with pytest.raises(ValueError, match=said):
        _read(**columns, event=changes.get("event", "died"))


def _read_late(entry, asked="since"):
    months, died = [f"{m:g}" for m in np.arange(24) + 0.5], ["1", "0"] * 12
    frame = pd.DataFrame({"slide_id": [f"s{i:02d}" for i in range(24)], "months": months, "died": died, "since": entry})
    target = Target("months", task="survival", event="died", entry=asked)
    return Survival.read(load_table(frame, needs_path=False), target, "t.csv")


def test_a_time_of_entry_is_read_and_has_to_come_first():
    task, targets = _read_late(["0.25"] * 24)
    assert targets[1].tolist() == [1.5, 0, 0.25] and task.label(targets[1]) == "(0.25,1.5+]"
    assert Survival.restored(task.provenance()) == task and task.figure_titles.keys() == {"c_index", "hazard_ratio"}
    wrong = ["0.25"] * 24
    wrong[3], wrong[5], wrong[7] = "3.5", "-1", "early"
    said = (
        "row 9: since is 'early', expected a number.*\nrow 5: since is 3.5, expected 0 or more and less than months, "
        "which is 3.5\nrow 7: since is -1"
    )
    with pytest.raises(ValueError, match=said):
        _read_late(wrong)
    with pytest.raises(ValueError, match=r"no column 'from' in t.csv; --entry names the one that says when a patient"):
        _read_late(wrong, "from")
    with pytest.raises(ValueError, match="--entry COLUMN goes with --task survival"):
        TrainConfig(task="regression", entry="since")


def test_a_late_entry_has_the_hazard_from_then_on():
    """Nelson and Aalen's estimate over those under observation, by a loop in float64."""
    targets = _targets(3)
    entry = np.floor(targets[:, 0] * np.random.default_rng(0).choice([0, 0.5, 0.95], size=60)) - 0.5
    late, task = np.column_stack([targets, entry]), replace(TASK, entry="since")
    hazards = {}
    for time in np.unique(targets[targets[:, 1] > 0, 0]):
        there = (entry < time) & (time <= targets[:, 0])
        hazards[time] = ((targets[:, 0] == time) & (targets[:, 1] > 0)).sum() / there.sum()
    logits = np.random.default_rng(1).normal(size=60)
    losses = task.criterion("full-likelihood", task.loss_terms(late))(
        torch.from_numpy(logits)[:, None], torch.from_numpy(late)
    )
    for (time, event, begun), logit, loss in zip(late, logits, losses.tolist(), strict=True):
        baseline = sum(h for at, h in hazards.items() if begun < at <= time)
        best = (1 + np.log(max(baseline, 1e-3))) if event else 0.0
        assert loss == pytest.approx(baseline * np.exp(logit) - event * logit - best, abs=1e-4)
    table = pd.DataFrame({"label": ["(3,5.5+]", "(0,5.5+]"], "risk": 0.0})
    table[["survival_2", "survival_5", "survival_9"]] = [0.8, 0.5, 0.2]
    assert task.judge(table).loss == pytest.approx(-np.log([0.5 / 0.8, 0.5]))


def test_an_event_column_goes_with_survival_alone():
    for given in (dict(task="survival"), dict(event="died"), dict(task="regression", event="died")):
        with pytest.raises(ValueError, match="--event COLUMN goes with --task survival"):
            TrainConfig(**given)


def _targets(seed=0, n=60):
    rng = np.random.default_rng(seed)
    died, left = rng.exponential(8, size=n), rng.uniform(1, 20, size=n)
    return np.stack([np.ceil(np.minimum(died, left)), died <= left], axis=1)  # whole months: many ties


def test_strata_are_event_and_time_unless_one_is_rare():
    targets = _targets(n=200)
    (strata,) = TASK.strata(targets)
    of_slide, names = strata.of_slide, strata.names
    assert [name.split(" ")[-2] for name in names] == ["to", "after"] * 2 and np.bincount(of_slide).min() > 20
    assert set(targets[of_slide < 2, 1]) == {1.0} and set(targets[of_slide > 1, 1]) == {0.0}
    rare = np.stack([np.arange(30.0), np.r_[np.zeros(3), np.ones(27)]], axis=1)
    assert np.bincount(TASK.strata(rare)[0].of_slide).tolist() == [15, 15]


def test_the_loss_is_half_the_deviance_over_the_hazard_of_the_training_part():
    """Nelson and Aalen's estimate by scikit-survival; whole months, so fewer times than knots."""
    targets, others = _targets(), _targets(7)
    steps, hazards = nelson_aalen_estimator(targets[:, 1] > 0, targets[:, 0])
    logits = np.random.default_rng(1).normal(size=60)
    logits[0] = 7.0  # beyond 5 the exponential goes on straight
    found = TASK.criterion("full-likelihood", TASK.loss_terms(targets))(
        torch.from_numpy(logits)[:, None], torch.from_numpy(others)
    )
    for (time, event), logit, loss in zip(others, logits, found.tolist(), strict=True):
        baseline = max(hazards[steps <= time], default=0.0)
        hazard = np.exp(logit) if logit < 5 else np.exp(5) * (logit - 4)
        best = (1 + np.log(max(baseline, 1e-3))) if event else 0.0
        assert loss == pytest.approx(baseline * hazard - event * logit - best, abs=1e-4)
    with pytest.raises(KeyError):
        TASK.criterion("focal", TASK.loss_terms(targets))


@pytest.mark.parametrize("entry", ["", "since"])
def test_the_loss_in_discrete_time_is_that_of_grouped_survival_data(entry):
    """Prentice and Gloeckler's likelihood by a loop over spans that end at tenths of the events."""
    targets, others = _targets(), np.column_stack([_targets(7), np.arange(60) % 3])
    events = np.sort(targets[targets[:, 1] > 0, 0])
    ends = [events[int(np.ceil(len(events) * k / 10)) - 1] for k in range(1, 11)]
    steps, hazards = nelson_aalen_estimator(targets[:, 1] > 0, targets[:, 0])
    by = np.diff([0.0, *(hazards[steps <= end].max() for end in ends)])
    logits = np.random.default_rng(1).normal(size=60)
    given = others if entry else others[:, :2]
    terms = TASK.loss_terms(targets)
    found = replace(TASK, entry=entry).criterion("discrete-time", terms)(
        torch.from_numpy(logits)[:, None], torch.from_numpy(given)
    )
    for (time, event, begun), logit, loss in zip(others, logits, found.tolist(), strict=True):
        expected, past = 0.0, False
        for k, end in enumerate(ends):
            if event and not past and (time <= end or k == 9):
                expected -= np.log(1 - np.exp(-max(by[k], 1e-3) * np.exp(logit)))
                past = True
            elif not past and end <= time and not (entry and end <= begun):
                expected += by[k] * np.exp(logit)
        assert loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("slides", [60, 700])
def test_in_the_training_part_itself_0_is_the_best_output_for_all(slides):
    """As many events are expected as were seen; with more events than knots up to their grain."""
    rng = np.random.default_rng(slides)
    targets = np.stack([rng.exponential(8, size=slides), rng.random(slides) < 0.6], axis=1)
    shift = torch.zeros((1, 1), requires_grad=True)
    criterion = TASK.criterion("full-likelihood", TASK.loss_terms(targets))
    losses = criterion(shift.expand(slides, 1), torch.from_numpy(targets))
    losses.mean().backward()
    assert shift.grad.item() == pytest.approx(0, abs=1e-6 if slides < 100 else 0.02) and losses.min() > -1e-6


def test_mean_survival_is_kaplan_and_meiers_and_half_of_the_slides_have_high_risk():
    targets, held_out = _targets(1, 300), _targets(2, 81)
    answers = np.random.default_rng(0).normal(size=(81, 1)) + 3
    calibration = TASK.calibrate(answers, held_out, targets)
    said = TASK.calibrated(answers, calibration)
    everyone = np.concatenate([targets, held_out])
    followed = Followed(everyone[:, 0], everyone[:, 1] > 0)
    assert said[:, 1:].mean(axis=0) == pytest.approx(
        kaplan_meier_at(followed, np.array(TASK.times), np.ones((1, 381)))[0]
    )
    assert (said[:, 0] > 0).sum() == 40 and (np.diff(said, axis=1)[:, 1:] <= 0).all()
    assert (np.argsort(said[:, 0]) == np.argsort(answers[:, 0])).all()
    alone = TASK.calibrate(np.empty((0, 1)), held_out[:0], targets)  # no slide to learn from
    assert alone["slope"] == 1 and TASK.calibrated(np.zeros((1, 1)), alone)[0, 1] == pytest.approx(
        kaplan_meier_at(Followed(targets[:, 0], targets[:, 1] > 0), np.array([2.0]), np.ones((1, 300)))[0, 0]
    )


def test_the_loss_of_a_slide_is_of_what_was_said_of_its_time():
    table = pd.DataFrame({"label": ["3", "5", "3+", "1+", "20", "20+"], "risk": 0.0})
    table[["survival_2", "survival_5", "survival_9"]] = [0.8, 0.5, 0.2]
    passed = -np.log([0.8, 0.5, 0.8, 1.0, 0.2, 0.2])
    expected = passed - np.array([1, 1, 0, 0, 1, 0]) * (1 + np.log(np.maximum(passed, 1e-3)))
    assert TASK.judge(table).loss == pytest.approx(expected)


def _cohort(folder, write_features, slides, seed, effect):
    """Half of the slides have `effect` more log hazard and show it in 3 of 60 patches; the table and the oracle's C."""
    rng, rows, risks = np.random.default_rng(seed), [], effect * (np.arange(slides) % 2)
    folder.mkdir()
    for i, risk in enumerate(risks):
        features = rng.normal(size=(60, 8))
        features[: 3 * int(risk > 0), 2] += 4
        write_features(folder, f"s{i:03d}", rng.permutation(features))
        died, left = 20 * rng.exponential(np.exp(-risk)), rng.uniform(2, 60)
        rows.append((f"s{i:03d}", f"p{i:03d}", round(min(died, left), 1), int(died <= left)))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "months", "died"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv", concordance_index_censored(table["died"] == 1, table["months"], risks)[0]


def test_a_hazard_that_few_patches_show_is_found(tmp_path, write_features):
    table, oracle = _cohort(tmp_path / "f", write_features, 150, 0, 2.0)
    run = train(table.parent, table, "months", tmp_path / "run", task="survival", event="died", **FAST)
    slide = run.metrics["slide"]
    assert slide["c_index"]["value"] > oracle - 0.06 and slide["c_index"]["low"] > 0.6
    assert run.metrics["against_mean"]["value"] > 0
    assert slide["ipa"]["low"] > 0 and slide["hazard_ratio"]["low"] < np.exp(2) < slide["hazard_ratio"]["high"]
    assert slide["c_index"]["value"] == pytest.approx(
        concordance_index_censored(
            ~run.predictions["label"].str.endswith("+"),
            run.predictions["label"].str.removesuffix("+").astype(float),
            run.predictions["risk"],
        )[0]
    )
    assert "log-rank p &lt; 0.001" in run.report.read_text()


def test_a_hazard_that_nothing_shows_is_not_found(tmp_path, write_features):
    table, _ = _cohort(tmp_path / "f", write_features, 100, 1, 0.0)
    run = train(table.parent, table, "months", tmp_path / "run", task="survival", event="died", head="mean", **FAST)
    for name in ("c_index", "c_uno", "auc"):
        assert run.metrics["slide"][name]["low"] < 0.5 < run.metrics["slide"][name]["high"]
    assert "this run does not show that the model works" in run.report.read_text()


def test_the_command_takes_time_event_and_loss(tmp_path, write_features, capsys):
    table, _ = _cohort(tmp_path / "f", write_features, 40, 4, 2.0)
    asked = [str(table.parent), "--labels", str(table), "--task", "survival", "--time", "months", "--event", "died"]
    more = ["--out", str(tmp_path / "run"), "--folds", "2", "--epochs", "5", "--bootstrap", "100", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, *more, "--loss", "discrete-time"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "events in 40, followed" in said and "C-index" in said and "hazard ratio" in said
