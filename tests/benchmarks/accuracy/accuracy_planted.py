"""Rare patches among real embeddings: AUROC of slides and patches, by head, beside an oracle that knows the patches.

Tiles of real slides (features of TCGA-CRC, CTransPath, 768 dimensions) lie in disjoint bags of neighbours. A tissue
kind, one of 40 k-means clusters of the slide-centred tiles, is taken out of all bags; half of the bags get `planted`
tiles of it from their own slide, so no slide's stain goes with the label. Four folds. The oracle is a logistic
regression on the true labels of training tiles, a bag scores the mean of its best three. The recipe of `needle` was
chosen on draws 1 to 6.

    python tests/benchmarks/accuracy/accuracy_planted.py                 draws 101 to 110 of 3, 5 and 10 among 130
    python tests/benchmarks/accuracy/accuracy_planted.py --permuted --heads needle --planted 3 --draws 1 40
                                                   labels shuffled: how often it says to have found something;
                                                   `means`, a logistic regression on means, is a head here as well
    python tests/benchmarks/accuracy/accuracy_planted.py --heads needle,needle/centring,needle/rounds --draws 1 5
                                                   without a part of it, see WITHOUT
    python tests/benchmarks/accuracy/accuracy_planted.py --heads needle --planted 3 --size 65 --draws 101 104 \
        --learned-from 24 48 96                    learning curves of needle and the oracle
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.heads.bags import Bags as HeadBags
from mil.heads.search import local_discriminants, refinement
from mil.heads.zoo import needle
from mil.heads.zoo.needle import Needle
from mil.metrics.found import found
from mil.run.ensemble import load_head, predict_slide
from mil.tasks.classification import Classification
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from real_data import DATA

CPU = torch.device("cpu")
KINDS, FOLDS = 40, 4
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bags:
    tiles: list[NDArray[np.float32]]  # (N, D) of each bag
    rare: list[NDArray[np.bool_]]  # (N,)
    labels: NDArray[np.int64]  # (B,)
    seed: int = 0  # of the folds
    learned_from: int | None = None  # bags, half of them positive; None: all that are not tested

    def folds(self) -> list[Fold]:
        splits = StratifiedKFold(FOLDS, shuffle=True, random_state=self.seed).split(self.labels, self.labels)
        return [
            Fold(k, 0, k, self._some(train), np.array([], np.int64), test) for k, (train, test) in enumerate(splits)
        ]

    def _some(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.learned_from is None:
            return train
        order = np.random.default_rng(self.seed).permutation(train)
        each = [order[self.labels[order] == label][: self.learned_from // 2] for label in (0, 1)]
        return np.sort(np.concatenate(each))


@cache
def slides() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features and coordinates."""
    found = []
    for path in sorted((DATA / "tcga_crc").glob("*.h5")):
        with h5py.File(path) as file:
            found.append((file["feats"][:].astype(np.float32), file["coords"][:]))
    return found


@cache
def plant(planted: int, size: int, draw: int) -> Bags:
    rng = np.random.default_rng(draw)
    of_slide = np.repeat(np.arange(len(slides())), [len(x) for x, _ in slides()])
    centred = np.concatenate([x - x.mean(0) for x, _ in slides()])
    kind = KMeans(KINDS, n_init=3, random_state=draw).fit_predict(centred)
    counts = np.array([np.bincount(kind[of_slide == s], minlength=KINDS) for s in range(len(slides()))])  # (S, KINDS)
    enough = np.flatnonzero((counts >= 2 * planted).all(axis=0))
    rare = int(rng.choice(enough)) if len(enough) else int(counts.min(axis=0).argmax())
    bags = Bags([], [], np.empty(0, np.int64))
    labels = []
    for s, (x, coords) in enumerate(slides()):
        own = kind[of_slide == s]
        rest = np.flatnonzero(own != rare)
        rest = rest[np.lexsort((coords[rest, 0], coords[rest, 1]))]
        left = rng.permutation(np.flatnonzero(own == rare))
        count = len(x) // size // 2 * 2
        of_bags = rng.permutation([0, 1] * (count // 2))
        for label, part in zip(of_bags, np.array_split(rest, count), strict=True):
            chosen, truth = part, np.zeros(len(part), bool)
            if label:
                left = np.roll(left, -planted)
                chosen, truth[-planted:] = np.r_[part[:-planted], left[:planted]], True
            order = rng.permutation(len(chosen))
            bags.tiles.append(x[chosen[order]])
            bags.rare.append(truth[order])
        labels.extend(of_bags)
    return Bags(bags.tiles, bags.rare, np.array(labels))


def oracle(bags: Bags) -> tuple[Floats, list[Floats]]:
    """Scores of bags (B,) and of their tiles, out of fold."""
    x = [(t - t.mean(0)) / (t.std(0) + 1e-6) for t in bags.tiles]
    said: dict[int, Floats] = {}
    for fold in bags.folds():
        model = LogisticRegression(C=0.01, max_iter=300, class_weight="balanced")
        model.fit(np.concatenate([x[i] for i in fold.train]), np.concatenate([bags.rare[i] for i in fold.train]))
        said |= {i: model.decision_function(x[i]) for i in fold.test}
    tiles = [said[i] for i in range(len(x))]
    return np.array([np.sort(t)[-3:].mean() for t in tiles]), tiles


def means(bags: Bags) -> tuple[Floats, list[Floats]]:
    """The same of a logistic regression on bags' means, which says nothing of tiles."""
    x = np.stack([t.mean(0) for t in bags.tiles])
    u, s, _ = np.linalg.svd((x - x.mean(0)) / x.std(0), full_matrices=False)
    x, scores = u * s, np.zeros(len(x))  # turned, which changes nothing, into as many features as there are bags
    for fold in bags.folds():
        model = LogisticRegression(C=0.01, max_iter=300).fit(x[fold.train], bags.labels[fold.train])
        scores[fold.test] = model.decision_function(x[fold.test])
    return scores, [np.full(len(t), np.nan) for t in bags.tiles]


def _standardised(head: Needle, features: torch.Tensor) -> torch.Tensor:
    """Instead of centred by the slide's own patches."""
    return head.standardise(HeadBags(features, torch.tensor([0, len(features)]))).clamp(-8, 8)


WITHOUT = {  # parts of needle, and what stands in their place
    "centring": (Needle, "_centred", _standardised),
    "neighbours": (needle, "neighbours", lambda *_: {}),
    "discriminants": (needle, "cell_counts", lambda _: []),
    "alignment": (local_discriminants, "_ALIGN_STEPS", 0),
    "tails": (local_discriminants, "_BEYOND", (-np.inf,)),
    "rounds": (refinement, "_ROUNDS", 0),
    "three": (refinement, "BEST", (10,)),
    "ten": (refinement, "BEST", (3,)),
}


def of_head(name: str, bags: Bags) -> tuple[Floats, list[Floats]]:
    """The same of a head, trained without a validation part; `needle/PART` is needle without it."""
    if name == "means":
        return means(bags)
    name, _, part = name.partition("/")
    with patch.object(*WITHOUT[part]) if part else nullcontext():
        return _of_head(name, bags)


def _of_head(name: str, bags: Bags) -> tuple[Floats, list[Floats]]:
    ids = np.array([f"b{i:03d}" for i in range(len(bags.labels))])
    features = tuple(torch.from_numpy(t).half() for t in bags.tiles)
    task = Classification(("without", "with"), 1)
    cohort = Cohort(ids, ids, task, bags.labels, None, None, features, (), (), "", "", (), {}, ())
    folds, config = bags.folds(), TrainConfig(head=name, val_fraction=0.0)
    plan = plan_training(cohort, folds, config, CPU)
    trained = [both for group in plan.groups for both in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    scores, tiles = np.zeros(len(ids)), [np.zeros(0)] * len(ids)
    for fold, (checkpoint, _) in zip(folds, trained, strict=True):
        head = load_head(checkpoint, CPU)
        for i in fold.test:
            said = predict_slide(head, features[i], CPU, task, {})
            scores[i] = np.log(said.answer[1] / said.answer[0])
            tiles[i] = said.attention if name == "gated-abmil" else said.patch_logits[:, 1]
    return scores, tiles


def areas(bags: Bags, scores: Floats, tiles: list[Floats]) -> tuple[float, float]:
    """AUROC of bags, and of tiles in positive bags, their mean."""
    of_tiles = [roc_auc_score(r, t) for r, t in zip(bags.rare, tiles, strict=True) if r.any() and np.isfinite(t).all()]
    return float(roc_auc_score(bags.labels, scores)), float(np.mean(of_tiles)) if of_tiles else float("nan")


def inside_folds(bags: Bags, scores: Floats) -> float:
    """AUROC of bags that the same model scored, mean of the folds."""
    return float(np.mean([roc_auc_score(bags.labels[f.test], scores[f.test]) for f in bags.folds()]))


def says_found(bags: Bags, scores: Floats) -> float:
    """1 where a run's report would say that something was found, see mil.metrics.found."""
    fold = np.zeros(len(scores), np.int64)
    for of in bags.folds():
        fold[of.test] = of.fold
    columns = {"repeat": 0, "fold": fold, "patient_id": np.arange(len(scores)), "label": bags.labels, "said": scores}
    return float(bool(found(pd.DataFrame(columns), "said", 1)["found"]))


def row_of(bags: Bags, heads: Sequence[str], permuted: bool) -> dict[str, float]:
    """Of each head and the oracle: AUROC of bags (s), of tiles (p), of bags inside folds (i), and whether something is
    said to be found (f)."""
    said = {name: of_head(name, bags) for name in heads}
    if not permuted:
        said = {"oracle": oracle(bags)} | said
    return {
        f"{name} {what}": value
        for name, (scores, tiles) in said.items()
        for what, value in zip(
            "spfi", (*areas(bags, scores, tiles), says_found(bags, scores), inside_folds(bags, scores)), strict=True
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="needle,gated-abmil,top-k,bag-stats")
    parser.add_argument("--planted", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--size", type=int, default=130)
    parser.add_argument("--draws", type=int, nargs=2, default=[101, 110])
    parser.add_argument("--permuted", action="store_true", help="labels of the first draw, shuffled once a draw")
    parser.add_argument("--same-folds", action="store_true", help="with --permuted: one seed of folds for all")
    parser.add_argument("--learned-from", type=int, nargs="+", default=[None], metavar="BAGS", help="of a fold; all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for planted, learned_from in product(given.planted, given.learned_from):
        rows = []
        for draw in range(given.draws[0], given.draws[1] + 1):
            bags = plant(planted, given.size, given.draws[0] if given.permuted else draw)
            if given.permuted:
                shuffled = np.random.default_rng(draw).permutation(bags.labels)
                bags = replace(bags, labels=shuffled, seed=0 if given.same_folds else draw)
            bags = replace(bags, learned_from=learned_from)
            rows.append(row_of(bags, given.heads.split(","), given.permuted))
            print(planted, draw, " ".join(f"{name} {v:.2f}" for name, v in rows[-1].items()), flush=True)
        table = pd.DataFrame(rows)
        low, middle, high = (table.quantile(q).round(2).tolist() for q in (0, 0.5, 1))
        error = 1.96 * table.std() / np.sqrt(len(table))
        for name, mean, half, *spread in zip(table, table.mean(), error, low, middle, high, strict=True):
            said = f"mean {mean:.3f} ± {half:.3f} (95 %), least, median, largest {spread}"
            print(f"{planted} of {given.size}, {learned_from or 'all'} bags, {name}: {said}", flush=True)


if __name__ == "__main__":
    main()
