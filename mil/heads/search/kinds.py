"""Which positive slides show patches of the same kind, where several kinds take turns among them.

One direction has to pass between kinds, and each round of refinement draws it further to one of them. The best patches
of a slide are mostly of the slide's kind, so their means lie in as many clusters as there are kinds.
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

KINDS = 3  # with fewer kinds than this, some of them are halved, which costs little


def of_slides(means: Tensor, seed: int) -> Tensor:
    """means (S, D) of positive slides' best patches, whitened -> (KINDS, S), 1 where a slide is of a kind, else 0.

    Slides that are fewer than kinds are of all kinds at once.
    """
    if len(means) < KINDS:
        return means.new_ones(KINDS, len(means))
    centred = means - means.mean(0)
    variances, axes = torch.linalg.eigh(centred @ centred.T)  # KINDS means differ in KINDS - 1 dimensions
    places = (axes * variances.clamp_min(0).sqrt())[:, 1 - KINDS :].cpu().numpy()
    kind = KMeans(KINDS, n_init=10, random_state=seed).fit_predict(places)
    return torch.from_numpy(np.arange(KINDS)[:, None] == kind).to(means)
