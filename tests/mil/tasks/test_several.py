"""Several targets at once: each has its own figures, from the slides that have its label, and no other slide counts."""

import numpy as np
import pandas as pd
import pytest
import torch

from features.feature_file import read_embeddings
from mil import train
from mil.diagnosis.diagnose import diagnose
from mil.diagnosis.inputs import Sources
from mil.metrics.bootstrap import Bootstrap
from mil.metrics.found import corrected
from mil.run.checkpoint import read_checkpoint
from mil.tasks.classification import Classification
from mil.tasks.several import Several
from mil.tasks.task import Target
from tiling.jobs.errors import RequestError
from tiling.manifest import load_table

FAST = dict(
    inner_folds=0,
    folds=2,
    val_fraction=0.5,
    epochs=25,
    embed_dim=16,
    attention_dim=4,
    bootstrap=100,
    device="cpu",
    learning_rate=0.01,
)
TASK = Several(("er", "stage"), (Classification(("neg", "pos"), 1), Classification(("I", "II", "III"), None)))
TARGETS = np.array([[0, 2], [1, np.nan], [np.nan, 0], [0, 1], [1, 2], [1, 0]], np.float32)
BOOTSTRAP = Bootstrap(100, 0)


def _read(frame, target="er,pr", **asked):
    return Several.read(load_table(pd.DataFrame(frame), needs_path=False), Target(target, **asked), "t.csv")


def _table(answers, targets=TARGETS):
    calibration = {"calibrations": [{"threshold": 0.5}, {"threshold": None}]}
    rows = [
        {"slide_id": f"s{i}", "patient_id": f"p{i}", "repeat": 0, "fold": i % 2, "label": TASK.label(target)}
        | TASK.columns(answer, calibration)
        for i, (target, answer) in enumerate(zip(targets, answers, strict=True))
    ]
    return pd.DataFrame(rows)


def _answers(seed):
    return TASK.answers(torch.from_numpy(np.random.default_rng(seed).normal(size=(len(TARGETS), 5))))


def _elsewhere(values, targets=TARGETS):
    """The same with other numbers where a slide has no label."""
    other = values.copy()
    other[np.isnan(targets[:, 0]), :2] = [0.9, 0.1]
    other[np.isnan(targets[:, 1]), 2:] = [0.1, 0.2, 0.7]
    assert not np.array_equal(other, values)
    return other


def test_columns_are_read_with_their_gaps_and_restored():
    frame = {"slide_id": list("abcd"), "er": ["pos", "", "neg", "pos"], "pr": ["lo", "hi", "", "lo"]}
    task, targets = _read(frame)
    assert np.array_equal(targets, [[1, 1], [np.nan, 0], [0, np.nan], [1, 1]], equal_nan=True)
    assert task.output_names == ("er=neg", "er=pos", "pr=hi", "pr=lo") and task.positive_name == "er=pos"
    assert [task.label(target) for target in targets[:3]] == ["er=pos; pr=lo", "pr=hi", "er=neg"]
    assert Several.restored(task.provenance()) == task == Several.restored(task.state())
    assert _read(frame, positive="er=neg,pr=hi")[0].provenance()["positive"] == ["neg", "hi"]
    assert TASK.provenance()["positive"] == ["pos", ""] and Several.restored(TASK.provenance()) == TASK


@pytest.mark.parametrize(
    ("changed", "asked", "said"),
    [
        ({"pr": ["", "", "", ""]}, {}, "no slide with features has a label in 'pr' of t.csv; leave it out"),
        ({"pr": ["hi", "hi", "", ""]}, {}, "have pr = 'hi' in t.csv; training needs two classes"),
        ({"pr": ["a; b", "c", "c", "c"]}, {}, r"'pr=a; b' can be read in two ways; rename the column or the class"),
        ({}, {"positive": "her2=1"}, "--positive her2=1: not a target"),
        ({}, {"positive": "hi"}, "--positive 'hi' is not a class of 'er'"),
    ],
)
def test_what_cannot_be_learnt_is_said(changed, asked, said):
    frame = {"slide_id": list("abcd"), "er": ["pos", "neg", "neg", "pos"], "pr": ["lo", "hi", "hi", "lo"], **changed}
    with pytest.raises(ValueError, match=said):
        _read(frame, **asked)


def test_a_request_that_is_wrong_is_refused_before_slides_are_read(tmp_path):
    frame = pd.DataFrame({"slide_id": ["a", "b"], "er": ["0", ""], "pr": ["1", ""]})
    for target, said in {
        "er,er": "--target names 'er' 2 times",
        "er,her2": "no label column 'her2'; the label columns are 'er', 'pr'",
        "er,pr": "row 3: labels 'er', 'pr' are all empty; fill one in or leave the row out",
    }.items():
        with pytest.raises(RequestError, match=said):
            load_table(frame, needs_path=False, target=target)
    assert len(load_table(frame, needs_path=False, target="er,pr", empty_labels=True)) == 2
    with pytest.raises(
        RequestError, match="--task survival learns one target, and --target names er, pr; several at once"
    ):
        Target("er,pr", task="survival")
    with pytest.raises(RequestError, match="--task several learns two targets or more, and --target names er"):
        Target("er", task="several")
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(RequestError, match="a diagnosis is of one target; give --target er, then the same for pr"):
        diagnose(Sources(tmp_path, tmp_path / "t.csv", "er,pr"))


def test_the_loss_is_the_sum_of_the_targets_own_mean_losses_where_there_is_a_label():
    logits = torch.randn(len(TARGETS), 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, terms = torch.from_numpy(TARGETS), TASK.loss_terms(TARGETS)
    losses = TASK.criterion("focal", terms, 0.1)(logits, targets)
    expected = torch.zeros(len(TARGETS))
    for k, (task, block) in enumerate(zip(TASK.tasks, (slice(0, 2), slice(2, 5)), strict=True)):
        has = ~targets[:, k].isnan()
        own = targets[has, k].long()
        share = len(own) / len(targets)
        expected[has] += task.criterion("focal", task.loss_terms(own.numpy()), 0.1)(logits[has, block], own) / share
    assert torch.allclose(losses, expected)
    losses.sum().backward()
    missing = torch.cat([targets[:, :1].isnan().expand(-1, 2), targets[:, 1:].isnan().expand(-1, 3)], dim=1)
    assert ((logits.grad == 0) == missing).all()


def test_a_missing_label_enters_nothing():
    answers = _answers(1)
    other, means = _elsewhere(answers), np.random.default_rng(2).normal(size=(len(TARGETS), 3))
    assert TASK.score(answers, TARGETS) == TASK.score(other, TARGETS)
    assert TASK.calibrate(answers, TARGETS, TARGETS) == TASK.calibrate(other, TARGETS, TARGETS)
    first, second = _table(answers), _table(other)
    assert TASK.evaluate(first, BOOTSTRAP) == TASK.evaluate(second, BOOTSTRAP)
    assert TASK.found(first) == TASK.found(second) and TASK.counts(first) == TASK.counts(second)
    assert vars(TASK.judge(first))["loss"].tolist() == vars(TASK.judge(second))["loss"].tolist()
    held_out = means, TARGETS
    said = TASK.fit_baseline(means, TARGETS, held_out)(means)
    moved = means.copy()
    moved[1] += 9  # of no stage: nothing to the stage's model
    assert np.array_equal(TASK.fit_baseline(moved, TARGETS, (moved, TARGETS))(means)[:, 2:], said[:, 2:])
    assert not np.array_equal(TASK.fit_baseline(moved, TARGETS, (moved, TARGETS))(means)[:, :2], said[:, :2])


def test_each_targets_figures_are_those_of_a_classification_of_its_slides():
    answers, figures = _answers(3), TASK.evaluate(_table(_answers(3)), BOOTSTRAP)
    for k, (name, task, block) in enumerate(zip(TASK.names, TASK.tasks, (slice(0, 2), slice(2, 5)), strict=True)):
        has = np.flatnonzero(~np.isnan(TARGETS[:, k]))
        threshold = {"threshold": 0.5 if task.positive is not None else None}
        rows = [
            {"patient_id": f"p{i}", "repeat": 0, "fold": i % 2, "label": task.label(TARGETS[i, k])}
            | task.columns(answers[i, block], threshold)
            for i in has.tolist()
        ]
        own = task.evaluate(pd.DataFrame(rows), BOOTSTRAP)
        assert {figure: figures[f"{name} {figure}"] for figure in own} == own
    mean = np.mean([figures["er auroc"]["value"], figures["stage auroc"]["value"]])
    assert figures["auroc"]["value"] == pytest.approx(mean)


def test_texts_say_which_target_they_are_of():
    assert TASK.joint_label(["er=pos", "er=pos; stage=II", "stage=II"]) == "er=pos; stage=II"
    assert TASK.joint_label(["er=pos; stage=II", "er=neg"]) == ""
    assert TASK.label_at("er=pos; stage=II", 4) == "stage=II" and TASK.label_at("er=pos", 3) == ""
    assert TASK.label_columns("stage=II") == {"label": "stage=II", "er label": "", "stage label": "II"}
    assert TASK.scored(3) == "log-odds of stage=II" and TASK.figure_title("er auroc") == "er: AUROC"


def _found(*p_values, least=0.001):
    return {str(at): {"p": p, "found": p <= 0.05, "least_p": least} for at, p in enumerate(p_values)}


def test_p_values_are_corrected_for_the_number_of_targets():
    untested = {"p": None, "found": None, "least_p": None}
    found = corrected({**_found(0.03, 0.01), "c": untested})
    assert [of["p"] for of in found.values()] == [0.03, 0.02, None] and found["c"] == untested
    assert [(of["p"], of["found"]) for of in corrected(_found(0.04, 0.03)).values()] == [(0.06, False)] * 2
    assert [of["found"] for of in corrected(_found(0.03, 0.03, least=0.03)).values()] == [None, False]


@pytest.fixture(scope="module")
def planted_kinds(tmp_path_factory, write_features):
    """56 slides: `a` shows in three patches of 20, `b` in three of another kind; half have no label of b."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "f").mkdir()
    rng, rows = np.random.default_rng(4), []
    for i in range(56):
        a, b = i % 2, i // 2 % 2
        features = rng.normal(size=(20, 6))
        features[:3, 0] += 5 * a
        features[3:6, 1] += 5 * b
        write_features(folder / "f", f"s{i:02d}", rng.permutation(features))
        rows.append((f"s{i:02d}", f"p{i:02d}", f"a{a}", f"b{b}" if i // 4 % 2 else ""))
    return folder, pd.DataFrame(rows, columns=["slide_id", "patient_id", "a", "b"])


@pytest.fixture
def _no_report(monkeypatch):
    monkeypatch.setattr("mil.training.command.write_report", lambda out: None)  # most of a small run's time


@pytest.mark.usefixtures("_no_report")
def test_one_run_finds_both_kinds_of_patches_as_well_as_a_run_for_each(planted_kinds, tmp_path):
    folder, table = planted_kinds
    both = train(folder / "f", table, "a,b", tmp_path / "both", **FAST)
    assert both.metrics["counts"]["slides_of_target"] == {"a": {"a0": 28, "a1": 28}, "b": {"b0": 14, "b1": 14}}
    for name in "ab":
        own = table[table[name] != ""]
        both.splits[both.splits["slide_id"].isin(own["slide_id"])].to_csv(tmp_path / "splits.csv", index=False)
        alone = train(folder / "f", own, name, tmp_path / name, splits=str(tmp_path / "splits.csv"), **FAST)
        figure = both.metrics["slide"][f"{name} auroc"]["value"]
        assert figure > 0.9 and figure > alone.metrics["slide"]["auroc"]["value"] - 0.05
    own, others = np.zeros(2), np.zeros(2)
    for slide_id in (f"s{i:02d}" for i in range(3, 56, 4)):  # both kinds are in these
        weights = both.attention(slide_id).class_attention.astype(np.float64)  # (N, 4)
        assert weights.sum(axis=0) == pytest.approx(1, abs=1e-5) and (weights[:, ::2] == weights[:, 1::2]).all()
        shows = read_embeddings(folder / "f" / f"{slide_id}.h5").features[:, :2] > 2.5
        own += (weights[:, ::2] * shows).sum(axis=0) / 14
        others += (weights[:, ::2] * shows[:, ::-1]).sum(axis=0) / 14
    assert (own > others).all(), (own, others)  # each target looks where its own kind of patches is
    assert set(both.predictions.loc[both.predictions["b label"] == "", "label"]) == {"a=a0", "a=a1"}
    own = both.predictions[both.predictions["b label"] != ""]
    truth, said = own["b label"] == "b1", own["b prob_b1"].to_numpy()
    pairs = said[truth][:, None] > said[~truth]
    assert both.metrics["slide"]["b auroc"]["value"] == pytest.approx(pairs.mean())


@pytest.mark.usefixtures("_no_report")
def test_labels_of_test_slides_never_reach_a_model(planted_kinds, tmp_path):
    folder, table = planted_kinds
    table = table[:48].assign(split=np.repeat(["train", "train", "val", "test"], 12))
    other, test = table.copy(), table["split"] == "test"
    other.loc[test, "a"] = other.loc[test, "a"].to_numpy()[::-1]
    other.loc[test, "b"] = [f"b{i % 2}" for i in range(12)]
    runs = [
        train(folder / "f", of, "a,b", tmp_path / f"run-{at}", **{**FAST, "epochs": 5})
        for at, of in enumerate((table, other))
    ]
    first, second = (read_checkpoint(run.path, 0) for run in runs)
    assert first.calibration == second.calibration and len(first.tensors) == len(second.tensors)
    assert all(np.array_equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    assert runs[0].metrics["slide"] != runs[1].metrics["slide"]
    for head in ("clam-sb", "auto"):
        with pytest.raises(RequestError, match=r"several columns at once \(a, b\), each of which could have"):
            train(folder / "f", table, "a,b", tmp_path / head, head=head, **FAST)


def test_a_fold_without_a_class_of_a_target_is_refused_by_name(planted_kinds, tmp_path):
    folder, table = planted_kinds
    with pytest.raises(
        RequestError, match="2 folds need 4 patients of each class of 'b'; found 14 with 'b=b0', 2 with"
    ):
        rare = table.assign(b=[b if b != "b1" or i > 52 else "" for i, b in enumerate(table["b"])])
        train(folder / "f", rare, "a,b", tmp_path / "rare", **FAST)
    fixed = table.assign(split=np.repeat(["train", "val", "test"], [28, 14, 14]))
    fixed.loc[42:, "b"] = ["", "b0"] * 7
    said = (
        r"fold 1: the test part \(14 slides of 14 patients, 7 of them with a label of 'b'\) has only 'b=b0'; "
        "use fewer folds, add patients of the missing class, leave 'b' out of --target, or fill"
    )
    with pytest.raises(RequestError, match=said):
        train(folder / "f", fixed, "a,b", tmp_path / "fixed", **FAST)
