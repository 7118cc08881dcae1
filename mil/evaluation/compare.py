"""Is this run better than that one? A paired comparison of two runs on the same slides.

A run whose bags are patients and one whose bags are slides are compared by patient, whose answer in the latter is the
mean over slides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.metrics.bootstrap import Bootstrap
from mil.run.layout import bags_of, require_complete
from mil.run.tables import read_patient_predictions, read_predictions
from mil.tasks.registry import restored
from tiling.jobs.errors import RequestError


def require_comparable(other: Path, cohort: Cohort, folds: Sequence[Fold]) -> list[str]:
    """What to know of a comparison with the run `other`. RequestError unless it tested the same slides and labels."""
    if why := cohort.task.differs_from(restored(require_complete(other))):
        raise RequestError(f"--compare {other}: that run {why}")
    same_bags = bags_of(other) == ("patient" if cohort.of_patients else "slide")
    predictions = read_predictions(other) if same_bags else read_patient_predictions(other)
    whose = "slide" if same_bags and not cohort.of_patients else "patient"
    places = {
        (str(name), int(repeat), str(label)): int(fold)
        for name, repeat, label, fold in zip(
            *(predictions[name] for name in (f"{whose}_id", "repeat", "label", "fold")), strict=True
        )
    }
    labels = [cohort.task.label(target) for target in cohort.targets]
    ids = cohort.slide_ids if whose == "slide" else cohort.patient_ids
    ours = {(str(ids[i]), f.repeat, labels[i]): f.fold for f in folds for i in f.test}
    if places.keys() != ours.keys():
        differing = sorted({name for name, _, _ in places.keys() ^ ours.keys()})
        raise RequestError(
            f"--compare {other}: a paired comparison needs the same {whose}s, labels and repeats; {len(differing)} "
            f"{whose}s differ, {differing[0]} among them; train with --splits {other / 'splits.csv'} and the same "
            "label table"
        )
    notices = [] if same_bags else [f"{other} has other bags (--bag), so the two are compared by patient"]
    if places != ours:
        notices.append(
            f"{other} had other folds, which adds noise to the comparison; use --splits {other / 'splits.csv'}"
        )
    return notices


def compare_runs(out: Path, other: Path, bootstrap: Bootstrap) -> dict[str, Any]:
    """The task's headline figure of `out` less that of `other`, see Task.against."""
    task = restored(require_complete(out))
    read = read_predictions if bags_of(out) == bags_of(other) else read_patient_predictions
    return task.against(read(out), read(other), bootstrap)
