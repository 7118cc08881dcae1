"""Whole sites and whole patients in every test fold, evenly dealt; the user's own splits; clear refusals."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.cohort.cohort import Cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.run.checkpoint import fold_numbers
from mil.tasks.classification import Classification
from mil.tasks.task import Strata
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError

SITE = SplitPlan(split="site", folds=3)


def _cohort(sites, labels, patients=None):
    ids = np.array([f"s{i:03d}" for i in range(len(sites))])
    whose, targets = ids if patients is None else np.array(patients), np.array(labels)
    task = Classification(("normal", "tumour"), 1)
    return Cohort(ids, whose, task, targets, None, np.array(sites), (), (), (), "", "", (), {}, ())


APART = (Strata(np.repeat([0, 1], 12), ("normal", "tumour")),)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n_sites=st.integers(6, 14), folds=st.integers(2, 4))
def test_sites_are_never_shared_and_classes_are_even(seed, n_sites, folds):
    rng = np.random.default_rng(seed)
    sites = np.concatenate([np.repeat(f"h{i}", rng.integers(4, 30)) for i in range(n_sites)])
    labels = rng.integers(2, size=len(sites))
    cohort = _cohort(sites, labels)
    made = make_folds(cohort, SplitPlan(split="site", folds=folds))
    assert sorted(np.concatenate([fold.test for fold in made])) == list(range(len(sites)))
    for fold in made:
        assert not set(sites[fold.test]) & (set(sites[fold.train]) | set(sites[fold.val]))
        assert len(set(labels[fold.test])) == 2
        largest = np.unique(sites, return_counts=True)[1].max()
        assert abs(len(fold.test) - len(sites) / folds) <= largest


def test_the_best_balance_is_found():
    sites = np.repeat([f"h{i}" for i in range(6)], [12, 2, 8, 6, 10, 4])  # 12 + 2 = 8 + 6 = 10 + 4
    cohort = _cohort(sites, np.tile([0, 1], 21))
    made = make_folds(cohort, SITE)
    assert [len(fold.test) for fold in made] == [14, 14, 14]
    assert [fold.test.tolist() for fold in made] == [fold.test.tolist() for fold in make_folds(cohort, SITE)]


def test_a_patient_seen_at_two_sites_joins_them():
    sites = np.repeat(["a", "b", "c", "d"], 8)
    patients = [f"p{i}" for i in range(32)]
    patients[8] = patients[0]  # at a and at b
    cohort = _cohort(sites, np.tile([0, 1], 16), patients)
    for fold in make_folds(cohort, SITE):
        assert len({"a", "b"} & set(sites[fold.test])) in (0, 2)
    with pytest.raises(RequestError, match=r"4 folds need 4 sites, found 3 \(4 sites, but some share patients\)"):
        make_folds(cohort, SplitPlan(split="site", folds=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": None}, "needs the column 'site' in the slide table"),
        ({"sites": np.array(["a", "b", ""] * 8)}, "empty for 8: s002, s005"),
        ({"sites": np.array(["a", "b"] * 12)}, "3 folds need 3 sites, found 2; use fewer --folds"),
        (
            {
                "sites": np.array(["a", "b", "c"] * 4 + ["d"] * 12),
                "strata": APART,
            },
            "'tumour' occurs at 1",
        ),
        (
            {"sites": np.repeat(["a", "b", "c", "d"], 6), "strata": APART},
            "the 4 sites cannot be dealt out to 3 folds so that each fold holds both classes",
        ),
        ({"splits": np.array(["train"] * 24)}, "remove the column to use --split site"),
    ],
)
def test_where_sites_cannot_be_kept_whole_it_says_why(change, message):
    cohort = _cohort(["a", "b", "c"] * 8, [0, 1] * 12)
    vars(cohort).update(change)
    with pytest.raises(RequestError, match=message):
        make_folds(cohort, SITE)


def test_a_run_gives_its_splits_to_another_head(tmp_path, make_cohort):
    table = make_cohort(tmp_path / "f", slides=24)
    fast = dict(epochs=2, embed_dim=8, attention_dim=4, bootstrap=100, device="cpu", folds=2, repeats=2)
    train_mil(table.parent, table, "diagnosis", tmp_path / "a", TrainConfig(**fast))
    given = TrainConfig(**fast, seed=9, head="mean", splits=str(tmp_path / "a" / "splits.csv"))
    train_mil(table.parent, table, "diagnosis", tmp_path / "b", given)
    splits = [(tmp_path / name / "splits.csv").read_bytes() for name in "ab"]
    assert splits[0] == splits[1] and fold_numbers(tmp_path / "b") == [0, 1, 2, 3]
    table_of_splits = pd.read_csv(tmp_path / "a" / "splits.csv", dtype=str, keep_default_na=False)
    assert set(table_of_splits["inner"]) == {"", *"012"}  # as many as there are patients of a class
    table_of_splits.loc[table_of_splits["inner"] == "2", "inner"] = ""
    table_of_splits.to_csv(tmp_path / "some.csv", index=False)
    with pytest.raises(RequestError, match="names the part of some training slides alone"):
        train_mil(
            table.parent, table, "diagnosis", tmp_path / "c", TrainConfig(**fast, splits=str(tmp_path / "some.csv"))
        )
    assert str(tmp_path) not in (tmp_path / "b" / "provenance.json").read_text()


def test_own_splits(tmp_path):
    cohort = _cohort(["a"] * 24, [0, 1] * 12)
    table = pd.DataFrame({"slide_id": cohort.slide_ids, "split": ["train"] * 12 + ["test"] * 8 + ["val"] * 4})
    path = tmp_path / "splits.csv"
    table.to_csv(path, index=False)
    (fold,) = make_folds(cohort, SplitPlan(splits=str(path)))
    assert (fold.test.tolist(), fold.val.tolist()) == (list(range(12, 20)), list(range(20, 24)))
    table.replace({"split": {"val": "train"}}).to_csv(path, index=False)
    (fold,) = make_folds(cohort, SplitPlan(splits=str(path)))
    assert fold.test.tolist() == list(range(12, 20)) and len(fold.val) == 4 and len(fold.train) == 12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("s000", "train", 0, 0), ("s000", "test", 0, 0)], "stand twice in one fold, 1: s000"),
        ([("s000", "test", 0, 0), ("s000", "test", 0, 1)], "tested by two folds of one repeat, 1: s000"),
        ([("zz", "test", 0, 0), ("s000", "dev", 0, 0)], "2 fault.*\n.*split is 'dev'.*\n.*does not have, 1: zz"),
        ([("s000", "test", "x", 0)], "column 'repeat' must hold whole numbers"),
        ([("s000", "test", 0, 0)], "0 slides for train and 1 for test"),
    ],
)
def test_own_splits_that_cannot_be_are_refused(tmp_path, rows, message):
    path = tmp_path / "splits.csv"
    pd.DataFrame(rows, columns=["slide_id", "split", "repeat", "fold"]).to_csv(path, index=False)
    with pytest.raises(RequestError, match=message):
        make_folds(_cohort(["a"] * 24, [0, 1] * 12), SplitPlan(splits=str(path)))


def test_a_file_without_the_columns_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("slide,part\na,train\n")
    cohort = _cohort(["a"] * 24, [0, 1] * 12)
    with pytest.raises(RequestError, match="no column 'slide_id', 'split'; found 'slide', 'part'"):
        make_folds(cohort, SplitPlan(splits=str(tmp_path / "x.csv")))
    with pytest.raises(RequestError, match="no such file"):
        make_folds(cohort, SplitPlan(splits=str(tmp_path / "y.csv")))
    with pytest.raises(ValueError, match="give one of them"):
        TrainConfig(splits="x.csv", split="site")
