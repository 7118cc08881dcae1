"""What a user says of the split, apart from the code that makes it, so that settings load without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitPlan:
    """How a cohort is split; the fields are settings of `train-mil`."""

    folds: int = 5
    repeats: int = 1
    split: str = "patient"  # or site
    splits: str = ""  # CSV of the user's own
    val_fraction: float = 0.25
    seed: int = 0
