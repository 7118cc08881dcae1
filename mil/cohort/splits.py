"""Who is trained on, who stops the training, who is tested: always whole patients.

Test parts come from a stratified k-fold by patient, repeated with other shuffles; where there are several targets they
are dealt out by mil.cohort.iterative_split, so that each has its share of the labels of each. The rest is split once
more, by patient and stratified: into K inner parts, each of which stops one of K models that learn from the others, or,
for large cohorts, into train and val of one model. With `--split site` whole sites are tested, see
mil.cohort.site_splits; val still comes from the sites of train. A table whose column `split` is filled gives one fixed
fold, and `--splits FILE` any folds, see mil.cohort.splits_file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from mil.cohort.cohort import Cohort, shown
from mil.cohort.iterative_split import iterative_parts
from mil.cohort.site_splits import site_groups, site_parts
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits_file import read_parts
from mil.tasks.task import Strata
from tiling.jobs.errors import RequestError
from tiling.manifest import SPLITS

_SHOWN_CLASSES = 8
_ATTEMPTS = 20  # deterministic reshuffles before a split is called impossible
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Positions of bags in the cohort, each rising. With inner parts, which make up train, val is empty."""

    number: int  # counts the folds of all repeats, from 0
    repeat: int
    fold: int
    train: Indices
    val: Indices
    test: Indices
    inner: tuple[Indices, ...] = ()
    member: int = 0  # which of the fold's models this is the fold of

    @property
    def members(self) -> tuple["Fold", ...]:
        """The fold of each of its models: one an inner part, which is its val, or the fold itself."""
        if not self.inner:
            return (self,)
        return tuple(
            replace(self, train=np.setdiff1d(self.train, part), val=part, inner=(), member=member)
            for member, part in enumerate(self.inner)
        )


def make_folds(cohort: Cohort, plan: SplitPlan) -> list[Fold]:
    """All folds of all repeats. Raises RequestError if patients are too few or stand on two sides."""
    if plan.splits:
        parts = read_parts(Path(plan.splits), cohort)
        folds = [_given_fold(cohort, plan, number, *place, of) for number, (place, of) in enumerate(parts.items())]
    elif cohort.splits is not None:
        if plan.split == "site":
            raise RequestError(
                "the slide table fixes one split (column 'split'); remove the column to use --split site"
            )
        given = {name: np.flatnonzero(cohort.splits == name).tolist() for name in SPLITS}
        folds = [_given_fold(cohort, plan, repeat, repeat, 0, given) for repeat in range(plan.repeats)]
    else:
        _require_patients(cohort, plan.folds)
        folds = [fold for repeat in range(plan.repeats) for fold in _cross_validation(cohort, plan, repeat)]
    models = [member for fold in folds for member in fold.members]
    faults = list(dict.fromkeys(fault for model in models for fault in fold_faults(cohort, model)))
    if faults:
        raise RequestError("\n  ".join(faults))
    return folds


def fold_faults(cohort: Cohort, fold: Fold) -> list[str]:
    """One line for each patient in two parts, and for each part that cannot be trained or judged on."""
    parts = {"train": fold.train, "val": fold.val, "test": fold.test}
    patients = {name: set(cohort.patient_ids[part]) for name, part in parts.items()}
    faults = []
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(patients[first] & patients[second])
        if both:
            faults.append(
                f"patients in both {first} and {second}, which would make the result look better than it is, "
                f"{shown(both)}; give all slides of a patient the same 'split'"
            )
    for name, part in parts.items():
        if name == "val" and not len(part):  # as asked for with val_fraction 0
            continue
        for strata in cohort.strata:
            found = [strata.names[c] for c in strata.held(part)]
            if len(found) > 1 and (name != "train" or len(found) == len(strata.names)):
                continue
            of, leave = "", ""
            if strata.target:
                of = f", {np.sum(strata.of_slide[part] >= 0)} of them with a label of {strata.target!r}"
                leave = f"leave {strata.target!r} out of --target, "
            faults.append(
                f"fold {fold.number + 1}: the {name} part ({len(cohort.slides_of(part))} slides of "
                f"{len(patients[name])} patients{of}) has only {', '.join(map(repr, found)) or 'no slides'}; "
                f"use fewer folds, add patients of the missing class, {leave}or fill the column 'split' yourself"
            )
    return faults


def _require_patients(cohort: Cohort, folds: int) -> None:
    needed = max(folds, 4 if folds == 2 else 3)  # so that the rest of each fold has one for train, one for val
    faults = []
    for strata in cohort.strata:
        counts = dict(zip(strata.names, _patients_of(cohort, strata), strict=True))
        if (least := min(counts.values())) < needed:
            out = f"{strata.target!r} out of --target" if strata.target else "the class out"
            remedy = f"use --folds {least}, or add patients" if least >= 3 else f"add patients, or leave {out}"
            if len(counts) > _SHOWN_CLASSES:
                remedy = (
                    "is the target a number? Then give --task regression or survival; else leave the rare classes out"
                )
            of = f" of {strata.target!r}" if strata.target else ""
            listed = [f"{count} with {name!r}" for name, count in counts.items()]
            more = [f"… ({len(listed)} classes)"] if len(listed) > _SHOWN_CLASSES else []
            faults.append(
                f"{folds} folds need {needed} patients of each class{of}; found "
                f"{', '.join([*listed[:_SHOWN_CLASSES], *more])}; {remedy}"
            )
    if faults:
        raise RequestError("\n  ".join(faults))


def _patients_of(cohort: Cohort, strata: Strata, among: Indices | slice = slice(None)) -> list[int]:
    """How many patients there are of each stratum."""
    of_slide, patients = strata.of_slide[among], cohort.patient_ids[among]
    return [len(set(patients[of_slide == c])) for c in range(len(strata.names))]


def _cross_validation(cohort: Cohort, plan: SplitPlan, repeat: int) -> list[Fold]:
    everyone = np.arange(len(cohort.bag_ids))
    entropy = (plan.seed, repeat)
    if plan.split == "site":
        tests = site_parts(cohort, site_groups(cohort), plan.folds, entropy)
    else:
        tests = _grouped_parts(cohort, everyone, plan.folds, entropy, lambda part: _usable(cohort, part))
    folds = []
    for index, test in enumerate(tests):
        number = repeat * plan.folds + index
        folds.append(_fold(cohort, plan, (number, repeat, index), np.setdiff1d(everyone, test), test))
    return folds


def _given_fold(
    cohort: Cohort, plan: SplitPlan, number: int, repeat: int, fold: int, given: Mapping[str, Sequence[int]]
) -> Fold:
    """A fold whose parts the user chose, as positions of slides by the name of the part."""
    train, val, test = (np.asarray(given[name], np.int64) for name in SPLITS)
    if not len(train) or not len(test):
        raise RequestError(
            f"column 'split' has {len(train)} slides for train and {len(test)} for test (with features); "
            "both are needed"
        )
    inner = tuple(np.asarray(given[part], np.int64) for part in sorted(set(given) - set(SPLITS), key=int))
    if inner and not len(val) and plan.inner_folds not in (0, 1):
        if not np.array_equal(np.sort(np.concatenate(inner)), train):
            raise RequestError(
                f"column 'inner' names the part of some training slides alone (repeat {repeat}, fold {fold})"
            )
        return Fold(number, repeat, fold, train, val, test, inner)
    if not len(val):
        return _fold(cohort, plan, (number, repeat, fold), train, test)
    return Fold(number, repeat, fold, train, val, test)


def _fold(cohort: Cohort, plan: SplitPlan, place: tuple[int, int, int], rest: Indices, test: Indices) -> Fold:
    """Of the `rest`, whom inner parts, or val, stop: about `val_fraction` of its patients, none if that is 0."""
    scarcest = min(filter(None, (n for strata in cohort.strata for n in _patients_of(cohort, strata, rest))))
    none = rest[:0]

    def accept(candidate: Indices) -> bool:
        return _usable(cohort, candidate) and _usable(cohort, np.setdiff1d(rest, candidate), every_one=True)

    for parts in range(min(plan.inner_parts(len(cohort.bag_ids)), scarcest), 1, -1):
        inner = _grouped_parts(cohort, rest, parts, (plan.seed, *place[1:], 2), accept)
        if all(map(accept, inner)):
            return Fold(*place, rest, none, test, tuple(inner))
    if not plan.val_fraction:
        return Fold(*place, rest, none, test)
    parts = max(2, min(round(1 / plan.val_fraction), scarcest))
    val = _grouped_parts(cohort, rest, parts, (plan.seed, *place[1:], 1), accept, needed=1)[0]
    return Fold(*place, np.setdiff1d(rest, val), val, test)


def _usable(cohort: Cohort, part: Indices, every_one: bool = False) -> bool:
    return all(len(strata.held(part)) >= (len(strata.names) if every_one else 2) for strata in cohort.strata)


def _grouped_parts(
    cohort: Cohort,
    among: Indices,
    parts: int,
    entropy: tuple[int, ...],
    accept: Callable[[Indices], bool],
    needed: int | None = None,
) -> list[Indices]:
    """Disjoint parts of `among`, stratified, by patient; reshuffled until the first `needed` are accepted.

    After `_ATTEMPTS` the last shuffle is returned, and `fold_faults` says what is wrong with it.
    """
    found: list[Indices] = []
    for state in np.random.SeedSequence(entropy).generate_state(_ATTEMPTS):
        found = _dealt_out(cohort, among, parts, int(state))
        if all(accept(part) for part in found[:needed]):
            break
    return found


def _dealt_out(cohort: Cohort, among: Indices, parts: int, seed: int) -> list[Indices]:
    patients = cohort.patient_ids[among]
    if len(cohort.strata) > 1:
        labels = np.hstack([strata.members[among] for strata in cohort.strata])
        part = iterative_parts(labels, patients, parts, np.random.default_rng(seed))
        return [among[part == k] for k in range(parts)]
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return [among[held_out] for _, held_out in splitter.split(among, cohort.strata[0].of_slide[among], patients)]
