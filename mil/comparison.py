"""Is this run better than that one? A paired comparison of two runs on the same slides."""

from collections.abc import Sequence
from pathlib import Path

from mil import run
from mil.cohort import Cohort
from mil.config import TrainConfig
from mil.display import difference_line
from mil.metrics import auroc_difference
from mil.splits import Fold
from tiling.errors import RequestError


def require_comparable(other: Path, cohort: Cohort, folds: Sequence[Fold]) -> list[str]:
    """What to know of a comparison with the run `other`. RequestError unless it tested the same slides and labels."""
    if run.require_complete(other)["classes"] != list(cohort.classes):
        raise RequestError(f"--compare {other}: that run has other classes than {', '.join(cohort.classes)}")
    predictions = run.read_predictions(other)
    places = {
        (str(slide_id), int(repeat), str(label)): int(fold)
        for slide_id, repeat, label, fold in zip(
            *(predictions[name] for name in ("slide_id", "repeat", "label", "fold")), strict=True
        )
    }
    ours = {
        (str(cohort.slide_ids[i]), f.repeat, cohort.classes[cohort.labels[i]]): f.fold for f in folds for i in f.test
    }
    if places.keys() != ours.keys():
        slides = sorted({slide_id for slide_id, _, _ in places.keys() ^ ours.keys()})
        raise RequestError(
            f"--compare {other}: a paired comparison needs the same slides, labels and repeats; {len(slides)} slides "
            f"differ, {slides[0]} among them; train with --splits {other / 'splits.csv'} and the same label table"
        )
    if places == ours:
        return []
    return [f"{other} had other folds, which adds noise to the comparison; use --splits {other / 'splits.csv'}"]


def compare_runs(out: Path, other: Path, cohort: Cohort, config: TrainConfig) -> str:
    """One sentence: AUROC of the slides of `out` less that of `other`, with interval and p values."""
    choice = (cohort.classes, cohort.positive, config.bootstrap, config.seed)
    found = auroc_difference(run.read_predictions(out), run.read_predictions(other), *choice)
    reached = run.read_metrics(other)["slide"]["auroc"]["value"]
    return difference_line(str(other), reached, vars(found))
