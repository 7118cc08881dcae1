"""Rare patches among real embeddings: AUROC of slides and patches, by head, beside an oracle that knows the patches.

Bags are of one of four sources, see tests/helpers/few_patches: `tcga`, tiles of one kind planted in real slides;
`ucsb`, patches of malignant images among those of benign ones; `phantoms`, whole drawn slides with small lesions, one
cohort a draw whatever `--planted` says; `generated`, Gaussian kinds with the variances of real tiles. Four folds. The
oracle is a logistic regression on the true labels of training tiles, a bag scores the mean of its best three. `dtfd` is
DTFD-MIL (Zhang et al., CVPR 2022) of torchmil. The recipe of `needle` was chosen on draws 1 to 6 of `tcga`, and its
parts were judged on 101 to 110.

    python tests/benchmarks/accuracy/accuracy_planted.py                 draws 101 to 110 of 3, 5 and 10 among 130
    python tests/benchmarks/accuracy/accuracy_planted.py --source ucsb --folder FOLDER --draws 401 403
                                                   embeds once, in the folder
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
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torchmil.models import DTFDMIL

from mil.cohort.cohort import Cohort
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
from few_patches import generated, phantoms, tcga, ucsb
from few_patches.bags import Bags

CPU = torch.device("cpu")
DTFD_EPOCHS, DTFD_WIDTH = 40, 256
Floats = NDArray[np.float64]


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


def dtfd(bags: Bags) -> tuple[Floats, list[Floats]]:
    """The same of DTFD-MIL: five pseudo-bags, whose pooled features are pooled again (AFS), as in the paper."""
    scores, tiles = np.zeros(len(bags.labels)), [np.zeros(0)] * len(bags.labels)
    for fold in bags.folds():
        torch.manual_seed(0)
        np.random.seed(0)  # of the pseudo-bags
        known = np.concatenate([bags.tiles[i] for i in fold.train])
        mean, deviation = known.mean(0), known.std(0) + 1e-6
        x = [torch.from_numpy((t - mean) / deviation).float()[None] for t in bags.tiles]
        embed = torch.nn.Sequential(torch.nn.Linear(known.shape[1], DTFD_WIDTH), torch.nn.ReLU())
        model = DTFDMIL((known.shape[1],), n_groups=5, distill_mode="afs", feat_ext=embed)
        optimiser = torch.optim.Adam(model.parameters(), 2e-4, weight_decay=1e-4)
        for _ in range(DTFD_EPOCHS):
            for i in np.random.permutation(fold.train).tolist():
                _, losses = model.compute_loss(torch.tensor([bags.labels[i]]), x[i])
                optimiser.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimiser.step()
        with torch.no_grad():
            for i in fold.test:
                said, of_tiles = model.eval().predict(x[i])
                scores[i], tiles[i] = said.item(), of_tiles[0].double().numpy()
    return scores, tiles


COMPETITORS = {"means": means, "dtfd": dtfd}


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
    "kinds": (refinement, "of_slides", lambda means, _: means.new_ones(refinement.KINDS, len(means))),
}


def of_head(name: str, bags: Bags) -> tuple[Floats, list[Floats]]:
    """The same of a head, trained without a validation part; `needle/PART` is needle without it."""
    if name in COMPETITORS:
        return COMPETITORS[name](bags)
    name, _, part = name.partition("/")
    with patch.object(*WITHOUT[part]) if part else nullcontext():
        return _of_head(name, bags)


def _of_head(name: str, bags: Bags) -> tuple[Floats, list[Floats]]:
    ids = np.array([f"b{i:03d}" for i in range(len(bags.labels))])
    features = tuple(torch.from_numpy(t).half() for t in bags.tiles)
    task = Classification(("without", "with"), 1)
    patients = ids if bags.patients is None else bags.patients
    cohort = Cohort(ids, patients, task, bags.labels, None, None, features, (), (), "", "", (), {}, ())
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


def drawn(given: argparse.Namespace, planted: int, draw: int) -> Bags:
    if given.source == "tcga":
        return tcga.plant(planted, given.size, draw)
    if given.source == "generated":
        return generated.make(planted, given.size, draw)
    return ucsb.plant(planted, draw, given.folder) if given.source == "ucsb" else phantoms.drawn(draw, given.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="needle,gated-abmil,top-k,bag-stats")
    parser.add_argument("--source", choices=("tcga", "ucsb", "phantoms", "generated"), default="tcga")
    parser.add_argument("--folder", type=Path, default=Path("few-patches"), help="of features of ucsb and phantoms")
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
            bags = drawn(given, planted, given.draws[0] if given.permuted else draw)
            if given.permuted:
                shuffled = np.random.default_rng(draw).permutation(bags.labels)
                bags = replace(bags, labels=shuffled, seed=0 if given.same_folds else draw)
            bags = replace(bags, learned_from=learned_from)
            rows.append(row_of(bags, given.heads.split(","), given.permuted))
            print(planted, draw, " ".join(f"{name} {v:.2f}" for name, v in rows[-1].items()), flush=True)
        table, among = pd.DataFrame(rows), round(np.mean([len(t) for t in bags.tiles]))
        low, middle, high = (table.quantile(q).round(2).tolist() for q in (0, 0.5, 1))
        error = 1.96 * table.std() / np.sqrt(len(table))
        for name, mean, half, *spread in zip(table, table.mean(), error, low, middle, high, strict=True):
            said = f"mean {mean:.3f} ± {half:.3f} (95 %), least, median, largest {spread}"
            print(f"{given.source}, {planted} of {among}, {learned_from or 'all'} bags, {name}: {said}", flush=True)


if __name__ == "__main__":
    main()
