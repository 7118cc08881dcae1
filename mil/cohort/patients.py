"""Patients as bags (`--bag patient`): a label that is given once a patient, and slides that lie one behind another."""

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mil.cohort.memory import TakenOneByOne
from tiling.manifest import SlideRow, raise_faults


def with_patients_labels(
    rows: Sequence[SlideRow], needed: Sequence[str], others: Sequence[str], table: str
) -> list[SlideRow]:
    """The rows by patient and slide, each with what any row of its patient says in the needed and other columns.

    RequestError names all patients whose rows contradict each other there or in `split`, or leave a needed one empty.
    """
    of_patient: dict[str, list[SlideRow]] = {}
    for row in sorted(rows, key=lambda row: (row.patient_id, row.slide_id)):
        of_patient.setdefault(row.patient_id, []).append(row)
    faults, filled = [], []
    for patient, own in of_patient.items():
        last_first = sorted(own, key=lambda row: -row.number)
        said = {c: {row.labels[c]: row.number for row in last_first if row.labels.get(c)} for c in (*needed, *others)}
        for column, found in {**said, "split": {row.split: row.number for row in last_first}}.items():
            if len(found) > 1:
                values = ", ".join(f"{value!r} in row {row}" for value, row in sorted(found.items(), key=itemgetter(1)))
                faults.append(f"patient {patient}: {column} is {values}; with --bag patient it is one for all slides")
            elif not found and column in needed and column in own[0].labels:
                numbers = ", ".join(str(row.number) for row in last_first[::-1])
                faults.append(
                    f"patient {patient}: {column} is empty in all rows ({numbers}); fill it in one of them, or leave "
                    "the patient out"
                )
        labels = {column: next(iter(found)) for column, found in said.items() if found}
        filled += [replace(row, labels={**row.labels, **labels}) for row in own]
    raise_faults(table, faults)
    return filled


class SlidesOfBags(TakenOneByOne):
    """L of (N, D), views of the bags' features, taken when they are asked for: a mapped bag is not held."""

    def __init__(self, features: Sequence[Tensor], bag_of: NDArray[np.int64], sizes: Sequence[int]) -> None:
        """bag_of (L,) rising; sizes: patches of each slide."""
        self._features, self._bag_of, self._sizes = features, bag_of, sizes
        ends = np.cumsum(sizes)
        first = np.searchsorted(bag_of, bag_of)  # the first slide of each slide's bag
        self.starts = (ends - sizes) - (ends - sizes)[first]  # (L,) rows of the bag at which the slides begin

    def __len__(self) -> int:
        return len(self._sizes)

    def take(self, index: int) -> Tensor:
        start = int(self.starts[index])
        return self._features[int(self._bag_of[index])][start : start + self._sizes[index]]
