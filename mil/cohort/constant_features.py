"""Features that say nothing, or speak in a few patches alone: an encoder's dead unit, a flag of an artefact."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mil.cohort.cohort import Cohort, shown

SMALLEST_STD = 1e-6  # a feature that varies less is constant
_SAMPLED = 20_000  # patches, of all slides together
_FEW = 0.01  # of the sample


def name_constant_features(cohort: Cohort) -> list[str]:
    """What the user should know, by the columns of the features from 0; nothing where all of them vary."""
    std = cohort.spread(np.arange(len(cohort.features)))[1]
    constant = std <= SMALLEST_STD
    nearly = (_most_common(cohort.features) > 1 - _FEW) & ~constant
    found = {"in all patches": constant, f"in more than {1 - _FEW:.0%} of the patches": nearly}
    return [
        f"features (columns, from 0) that are the same {where}, {shown(np.flatnonzero(of).astype(str).tolist())}"
        for where, of in found.items()
        if of.any()
    ]


def _most_common(features: Sequence[Tensor]) -> np.ndarray:
    """(D,) share of a sample of patches that have the column's median, which a value of more than half of them is."""
    step = max(1, sum(map(len, features)) // _SAMPLED)
    sample = torch.cat([of_slide[::step] for of_slide in features]).float()
    return (sample == sample.median(0).values).float().mean(0).numpy()
