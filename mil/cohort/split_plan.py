"""What a user says of the split, apart from the code that makes it, so that settings load without torch."""

from dataclasses import dataclass
from typing import Literal

BAGS = ("slide", "patient")
INNER_FOLDS = 5
# Slides, of which 400 train; at 800 nothing was gained (tests/benchmarks/accuracy/accuracy_inner_folds.py).
_SMALL_COHORT = 500


@dataclass(frozen=True)
class SplitPlan:
    """How a cohort is split; the fields are settings of `train-mil`."""

    folds: int = 5
    repeats: int = 1
    split: str = "patient"  # or site
    splits: str = ""  # CSV of the user's own
    val_fraction: float = 0.25
    seed: int = 0
    inner_folds: int | Literal["auto"] = 0

    def inner_parts(self, slides: int) -> int:
        """Of the slides that a fold of a cohort of so many does not test; below 2: one part is held out of one model.

        A cohort that is told to hold nothing out (val_fraction 0) has none, unless they are asked for by number.
        """
        if self.inner_folds == "auto":
            return INNER_FOLDS if self.val_fraction and slides <= _SMALL_COHORT else 0
        return self.inner_folds
