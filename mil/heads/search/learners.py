"""Who learns from which slides: one learner of all, and one without each part of a cross-fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Guess = dict[int, Floats]  # by slide, not of all: scores (Q, N) of its patches, by each learner


@dataclass(frozen=True)
class Learners:
    """positive (S,) bool; patient (S,) int64; learns (Q, S) bool, the last learner's row all true."""

    positive: NDArray[np.bool_]
    patient: Indices
    learns: NDArray[np.bool_]

    @classmethod
    def cross_fit(
        cls, positive: NDArray[np.bool_], patient_ids: NDArray[np.str_], parts: Sequence[Indices]
    ) -> "Learners":
        """One learner without each of the parts, and one with all slides."""
        learns = np.ones((len(parts) + 1, len(positive)), bool)
        for q, part in enumerate(parts):
            learns[q, part] = False
        return cls(positive, np.unique(patient_ids, return_inverse=True)[1].astype(np.int64), learns)

    def without(self, slide: int) -> NDArray[np.bool_]:
        """(Q, S): the slides that each learner has when it judges this one, whose patient it must not know."""
        known: NDArray[np.bool_] = self.learns & (self.patient != self.patient[slide])
        return known
