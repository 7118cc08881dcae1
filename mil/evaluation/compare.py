"""Is this run better than that one? A paired comparison of two runs on the same slides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.metrics.bootstrap import Bootstrap
from mil.run.layout import require_complete
from mil.run.tables import read_predictions
from mil.tasks.registry import restored
from tiling.jobs.errors import RequestError


def require_comparable(other: Path, cohort: Cohort, folds: Sequence[Fold]) -> list[str]:
    """What to know of a comparison with the run `other`. RequestError unless it tested the same slides and labels."""
    if why := cohort.task.differs_from(restored(require_complete(other))):
        raise RequestError(f"--compare {other}: that run {why}")
    predictions = read_predictions(other)
    places = {
        (str(slide_id), int(repeat), str(label)): int(fold)
        for slide_id, repeat, label, fold in zip(
            *(predictions[name] for name in ("slide_id", "repeat", "label", "fold")), strict=True
        )
    }
    labels = [cohort.task.label(target) for target in cohort.targets]
    ours = {(str(cohort.slide_ids[i]), f.repeat, labels[i]): f.fold for f in folds for i in f.test}
    if places.keys() != ours.keys():
        slides = sorted({slide_id for slide_id, _, _ in places.keys() ^ ours.keys()})
        raise RequestError(
            f"--compare {other}: a paired comparison needs the same slides, labels and repeats; {len(slides)} slides "
            f"differ, {slides[0]} among them; train with --splits {other / 'splits.csv'} and the same label table"
        )
    if places == ours:
        return []
    return [f"{other} had other folds, which adds noise to the comparison; use --splits {other / 'splits.csv'}"]


def compare_runs(out: Path, other: Path, bootstrap: Bootstrap) -> dict[str, Any]:
    """The task's headline figure of the slides of `out` less that of `other`, see Task.against."""
    task = restored(require_complete(out))
    return task.against(read_predictions(out), read_predictions(other), bootstrap)
