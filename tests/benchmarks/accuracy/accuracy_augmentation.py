"""Does augmentation of features help? Nested selection as in accuracy_defaults.py, on real and on generated bags.

Each way changes the bags of a training step alone, by the seed, epoch and slide: normal noise on every feature, in
deviations; mixup within a slide (each patch 0.7 to 1 of itself, the rest another patch of the slide: Gadermayr et al.,
"MixUp-MIL", MICCAI 2023); mixup of slides and labels (each slide also as λ of itself and 1 - λ of another's patches, λ
from Beta(0.4, 0.4), the loss mixed alike: Zhang et al., "mixup", ICLR 2018), where a model learns from both; a whole
cluster of patches left out of each slide (k-means over the cohort's patches, 8 clusters, slides of one kept). MUSK1,
Fox, UCSB breast (as accuracy_ucsb.py embeds it), `planted-10` (a draw of accuracy_planted.py, 10 of 130 tiles) and
`few-100` (100 slides of a kind of accuracy_probabilities.py); UCSB and planted bags in their first 64 principal
components.

    python tests/benchmarks/accuracy/accuracy_augmentation.py [--sets musk1,fox,ucsb,planted-10,few-100]
        [--ways "defaults,noise 0.1,noise 0.3,mixup within,mixup,without a cluster"]
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accuracy_defaults import bench, in_components, judge
from accuracy_heads import embedded_ucsb
from accuracy_probabilities import drawn
from few_patches import tcga
from sklearn.cluster import KMeans
from torch import Tensor

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold, Indices
from mil.heads.bags import pack
from mil.training.config import TrainConfig
from mil.training.descent import Descent

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import cohort_of, load_bags

CLUSTERS = 8
WAYS = "defaults", "noise 0.1", "noise 0.3", "mixup within", "mixup", "without a cluster"
Augment = Callable[[Tensor, int, np.random.Generator], Tensor]  # of a slide's features (N, D), and which slide it is
forward = Descent._forward  # as it is


def noisy(deviations: float, spread: Tensor, features: Tensor, slide: int, rng: np.random.Generator) -> Tensor:
    return features + deviations * spread * torch.from_numpy(rng.standard_normal(features.shape, np.float32))


def mixed_within(features: Tensor, slide: int, rng: np.random.Generator) -> Tensor:
    share = torch.from_numpy(rng.uniform(0.7, 1, (len(features), 1)).astype(np.float32))
    return share * features + (1 - share) * features[torch.from_numpy(rng.permutation(len(features)))]


def without_cluster(clusters: list[np.ndarray], features: Tensor, slide: int, rng: np.random.Generator) -> Tensor:
    own = clusters[slide]
    kept = own != rng.choice(np.unique(own))
    return features[torch.from_numpy(kept)] if kept.any() else features


def changed(augment: Augment) -> Callable[..., tuple[Tensor, Tensor]]:
    """`Descent._forward` whose training bags are changed so."""

    def run(self: Descent, slides: Indices, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        if not train:
            return forward(self, slides, epoch, train)
        bags = [augment(self._features[i].float(), i, np.random.default_rng((epoch, i))) for i in slides.tolist()]
        return _losses(self, bags, slides, slides, epoch)

    return run


def mixed(self: Descent, slides: Indices, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
    """`Descent._forward` that learns from mixed slides too."""
    if not train:
        return forward(self, slides, epoch, train)
    losses, logits = forward(self, slides, epoch, train)
    rng = np.random.default_rng((epoch, int(slides[0])))
    others, own = rng.permutation(slides), rng.beta(0.4, 0.4, len(slides)).astype(np.float32)
    bags = []
    for i, j, share in zip(slides, others, own.tolist(), strict=True):
        first, second = self._features[i].float(), self._features[j].float()
        bags.append(share * first + (1 - share) * second[torch.from_numpy(rng.choice(len(second), len(first)))])
    shares = torch.from_numpy(own)
    of_own, of_others = (_losses(self, bags, slides, named, epoch)[0] for named in (slides, others))
    both = torch.from_numpy(self._in_train[:, slides] & self._in_train[:, others])
    return torch.where(both, (losses + shares * of_own + (1 - shares) * of_others) / 2, losses), logits


def _losses(self: Descent, bags: list[Tensor], slides: Indices, labelled: Indices, epoch: int) -> tuple[Tensor, Tensor]:
    """Losses (M, B) and logits of bags with the labels of `labelled`."""
    packed = pack(bags)
    self._noise.set(slides.tolist(), packed.sizes, epoch)
    return self._stack(packed, self._targets[torch.from_numpy(labelled)], self._terms, True)


def ways(cohort: Cohort) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    patches = np.concatenate([f.float().numpy() for f in cohort.features])
    kinds = KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(patches)
    clusters = np.split(kinds, np.cumsum([len(f) for f in cohort.features])[:-1])
    spread = torch.from_numpy(patches.std(axis=0))
    each = (
        forward,
        changed(partial(noisy, 0.1, spread)),
        changed(partial(noisy, 0.3, spread)),
        changed(mixed_within),
        mixed,
        changed(partial(without_cluster, clusters)),
    )
    return dict(zip(WAYS, each, strict=True))


def get_cohort(name: str) -> Cohort:
    if name in ("musk1", "fox"):
        return load_bags(name)
    if name == "ucsb":
        return in_components(embedded_ucsb())
    kind, number = name.split("-")
    if kind == "planted":
        bags = tcga.plant(int(number), 130, 101)
        return in_components(cohort_of(bags.labels.tolist(), [x.astype(np.float16) for x in bags.tiles]))
    cohort = drawn(kind, int(number), 20, new=0)
    return replace(cohort, splits=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="musk1,fox,ucsb,planted-10,few-100")
    parser.add_argument("--ways", default=",".join(WAYS), help="the defaults first")
    told = parser.parse_args()
    for name in told.sets.split(","):
        cohort = get_cohort(name)

        def judged(
            way: Callable[..., tuple[Tensor, Tensor]], folds: list[Fold], of: Cohort = cohort
        ) -> list[np.ndarray]:
            with patch.object(Descent, "_forward", way):
                return judge(of, folds, TrainConfig(val_fraction=0.0, inner_folds=0))

        asked = {of: way for of, way in ways(cohort).items() if of in told.ways.split(",")}
        bench(name, cohort, {of: partial(judged, way) for of, way in asked.items()})


if __name__ == "__main__":
    main()
