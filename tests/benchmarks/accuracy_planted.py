"""Rare patches among real embeddings: AUROC of slides and patches, by head, beside an oracle that knows the patches.

Tiles of real slides (features of TCGA-CRC, CTransPath, 768 dimensions) lie in disjoint bags of neighbours. A tissue
kind, one of 40 k-means clusters of the slide-centred tiles, is taken out of all bags; half of the bags get `planted`
tiles of it from their own slide, so no slide's stain goes with the label. Four folds. The oracle is a logistic
regression on the true labels of training tiles, a bag scores the mean of its best three. The recipe of `needle` was
chosen on draws 1 to 6.

    python tests/benchmarks/accuracy_planted.py                         draws 101 to 110 of 3, 5 and 10 among 130
    python tests/benchmarks/accuracy_planted.py --permuted --heads needle   labels shuffled: what it finds in nothing
"""

import argparse
from dataclasses import dataclass
from functools import cache

import h5py
import numpy as np
import pandas as pd
import torch
from bench_training import DATA
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.run.ensemble import load_head, predict_slide
from mil.tasks.classification import Classification
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

CPU = torch.device("cpu")
KINDS, FOLDS = 40, 4
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bags:
    tiles: list[NDArray[np.float32]]  # (N, D) of each bag
    rare: list[NDArray[np.bool_]]  # (N,)
    labels: NDArray[np.int64]  # (B,)

    def folds(self) -> list[Fold]:
        splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(self.labels, self.labels)
        return [Fold(k, 0, k, train, np.array([], np.int64), test) for k, (train, test) in enumerate(splits)]


@cache
def slides() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features and coordinates."""
    found = []
    for path in sorted((DATA.parent / "tcga_crc").glob("*.h5")):
        with h5py.File(path) as file:
            found.append((file["feats"][:].astype(np.float32), file["coords"][:]))
    return found


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


def of_head(name: str, bags: Bags) -> tuple[Floats, list[Floats]]:
    """The same of a head, trained without a validation part."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="needle,gated-abmil,top-k,bag-stats")
    parser.add_argument("--planted", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--size", type=int, default=130)
    parser.add_argument("--draws", type=int, nargs=2, default=[101, 110])
    parser.add_argument("--permuted", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for planted in given.planted:
        rows = []
        for draw in range(given.draws[0], given.draws[1] + 1):
            bags = plant(planted, given.size, draw)
            if given.permuted:
                bags = Bags(bags.tiles, bags.rare, np.random.default_rng(draw).permutation(bags.labels))
            row = {"oracle": areas(bags, *oracle(bags))} | {
                name: areas(bags, *of_head(name, bags)) for name in given.heads.split(",")
            }
            rows.append({f"{name} {what}": v for name, both in row.items() for what, v in zip("sp", both, strict=True)})
            print(planted, draw, " ".join(f"{name} {v:.2f}" for name, v in rows[-1].items()), flush=True)
        table = pd.DataFrame(rows)
        low, middle, high = (table.quantile(q).round(2).tolist() for q in (0, 0.5, 1))
        for name, mean, *spread in zip(table, table.mean(), low, middle, high, strict=True):
            print(f"{planted} of {given.size}, {name}: mean {mean:.3f}, least, median, largest {spread}", flush=True)


if __name__ == "__main__":
    main()
