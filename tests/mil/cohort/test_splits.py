"""Whole patients on one side, both classes in every part, the same split for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mil.cohort.cohort import Cohort
from mil.cohort.iterative_split import iterative_parts
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.tasks.classification import Classification
from tiling.jobs.errors import RequestError


def _cohort(patients, labels, splits=None, classes=("normal", "tumour")):
    ids, splits = np.array([f"s{i}" for i in range(len(patients))]), None if splits is None else np.array(splits)
    task, targets = Classification(classes, 1), np.array(labels)
    return Cohort(ids, np.array(patients), task, targets, splits, None, (), (), (), "", "", (), {}, ())


def _balanced(n=40, per_patient=2):
    patients = [f"p{i // per_patient:02d}" for i in range(n)]
    return _cohort(patients, [i // per_patient % 2 for i in range(n)])


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 25), min_size=20, max_size=60),
    seed=st.integers(0, 999),
    folds=st.integers(2, 5),
    repeats=st.integers(1, 2),
    mixed=st.booleans(),
)
def test_patients_are_never_shared_and_each_slide_is_tested_once_a_repeat(owners, seed, folds, repeats, mixed):
    labels = [(owner + (i if mixed else 0)) % 2 for i, owner in enumerate(owners)]
    cohort = _cohort([f"p{owner}" for owner in owners], labels)
    try:
        made = make_folds(cohort, SplitPlan(folds=folds, repeats=repeats, seed=seed))
    except RequestError:
        assume(False)
    assert [fold.number for fold in made] == list(range(folds * repeats))
    for fold in made:
        parts = [fold.train, fold.val, fold.test]
        assert sorted(np.concatenate(parts)) == list(range(len(owners)))
        patients = [set(cohort.patient_ids[part]) for part in parts]
        assert sum(map(len, patients)) == len(set.union(*patients))
        assert all(len(set(cohort.labels[part])) == 2 for part in parts)
    for repeat in range(repeats):
        tested = np.concatenate([fold.test for fold in made if fold.repeat == repeat])
        assert sorted(tested) == list(range(len(owners)))


def test_seed_and_repeat_decide():
    def tests(**settings):
        return [fold.test.tolist() for fold in make_folds(_balanced(), SplitPlan(**settings))]

    assert tests(seed=1) == tests(seed=1) != tests(seed=2)
    twice = tests(seed=1, repeats=2)
    assert twice[:5] == tests(seed=1) != twice[5:]


def test_validation_has_about_its_fraction():
    for fold in make_folds(_balanced(80), SplitPlan(val_fraction=0.25)):
        assert len(fold.val) == pytest.approx(0.25 * 64, abs=4)


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 25), min_size=20, max_size=60),
    seed=st.integers(0, 999),
    parts=st.integers(2, 8),
    mixed=st.booleans(),
)
def test_inner_parts_hold_each_training_patient_out_of_one_model(owners, seed, parts, mixed):
    labels = [(owner + (i if mixed else 0)) % 2 for i, owner in enumerate(owners)]
    cohort = _cohort([f"p{owner}" for owner in owners], labels)
    try:
        made = make_folds(cohort, SplitPlan(folds=3, seed=seed, inner_folds=parts))
    except RequestError:
        assume(False)
    for fold in made:
        if fold.inner:  # else there were too few patients, and one part is held out
            assert 2 <= len(fold.inner) <= parts and not len(fold.val)
            assert sorted(np.concatenate(fold.inner)) == fold.train.tolist()
        for member, own in enumerate(fold.members):
            patients = [set(cohort.patient_ids[part]) for part in (own.train, own.val, fold.test)]
            assert sum(map(len, patients)) == len(set.union(*patients)) == len(set(owners))
            assert len(set(cohort.labels[own.train])) == len(set(cohort.labels[own.val])) == 2
            assert (own.number, own.member, own.members) == (fold.number, member, (own,))


def test_inner_folds_are_for_small_cohorts_that_hold_something_out():
    assert SplitPlan(inner_folds="auto").inner_parts(60) == 5 and SplitPlan(inner_folds="auto").inner_parts(9999) == 0
    assert SplitPlan(inner_folds="auto", val_fraction=0).inner_parts(60) == 0
    assert SplitPlan(inner_folds=3, val_fraction=0).inner_parts(9999) == 3
    assert [len(fold.inner) for fold in make_folds(_balanced(80), SplitPlan(inner_folds=1))] == [0] * 5
    given = _balanced()
    given = replace(given, splits=np.array(["train"] * 24 + ["val"] * 8 + ["test"] * 8))
    assert not make_folds(given, SplitPlan(inner_folds=5))[0].inner
    given = replace(given, splits=np.array(["train"] * 32 + ["test"] * 8))
    assert len(make_folds(given, SplitPlan(inner_folds=5))[0].inner) == 5


def test_the_column_split_is_the_single_fold():
    splits = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
    cohort = _balanced()
    cohort = replace(cohort, splits=np.array(splits))
    (fold,) = make_folds(cohort, SplitPlan())
    assert [cohort.splits[part].tolist() for part in (fold.train, fold.val, fold.test)] == [
        ["train"] * 24,
        ["val"] * 8,
        ["test"] * 8,
    ]


def test_val_is_taken_from_train_where_the_column_has_none():
    cohort = _balanced()
    cohort = replace(cohort, splits=np.array(["train"] * 32 + ["test"] * 8))
    (fold,) = make_folds(cohort, SplitPlan())
    assert fold.test.tolist() == list(range(32, 40))
    assert len(fold.val) == 8 and sorted([*fold.train, *fold.val]) == list(range(32))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"] * 31 + ["test"] * 9, "patients in both train and test.*1: p15"),
        (["train"] * 40, "40 slides for train and 0 for test"),
        (["train"] * 38 + ["test"] * 2, "the test part .* has only 'tumour'; use fewer folds"),
    ],
)
def test_a_fixed_split_that_would_mislead_is_refused(splits, message):
    cohort = _balanced()
    cohort = replace(cohort, splits=np.array(splits))
    with pytest.raises(RequestError, match=message):
        make_folds(cohort, SplitPlan())


def test_several_targets_are_spread_evenly_though_labels_are_rare_and_missing():
    rng, n = np.random.default_rng(1), 240
    targets = np.stack([rng.random(n) < share for share in (0.1, 0.3, 0.5)], axis=1).astype(np.float32)
    targets[rng.random(targets.shape) < 0.4] = np.nan
    patients = np.array([f"p{i:03d}" for i in np.sort(rng.integers(0, 120, n))])
    labels = np.hstack([targets == 0, targets == 1])
    kept = labels.any(axis=1)
    labels, patients = labels[kept], patients[kept]

    def unevenness(part):
        held = np.stack([labels[part == k].sum(axis=0) for k in range(5)])
        return (np.abs(held - labels.sum(axis=0) / 5) / labels.sum(axis=0)).max()

    part = iterative_parts(labels, patients, 5, np.random.default_rng(0))
    assert all(len(set(part[patients == name])) == 1 for name in set(patients))
    assert np.array_equal(part, iterative_parts(labels, patients, 5, np.random.default_rng(0)))
    shuffled = np.unique(patients, return_inverse=True)[1]
    chance = [unevenness(np.random.default_rng(s).permutation(patients.size)[shuffled] % 5) for s in range(20)]
    assert unevenness(part) < 0.1 < min(chance)


def test_too_few_patients_of_a_class():
    cohort = _cohort([f"p{i}" for i in range(20)], [0] * 16 + [1] * 4)
    with pytest.raises(RequestError, match=r"found 16 with 'normal', 4 with 'tumour'; use --folds 4"):
        make_folds(cohort, SplitPlan())
    assert len(make_folds(cohort, SplitPlan(folds=4))) == 4
    with pytest.raises(RequestError, match="found 2 with 'normal', 2 with 'tumour'; add patients"):
        make_folds(_cohort(list("abcd"), [0, 0, 1, 1]), SplitPlan(folds=2))
