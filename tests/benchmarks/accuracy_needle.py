"""Slide and patch AUROC of heads where few of 5,000 patches are positive, beside an oracle that knows the patch labels.

    python accuracy_needle.py --heads needle [--slides 100] [--positives 10] [--shift 0.3] [--distance 4] [--seeds 7]

Twenty clusters in 64 dimensions, mixed in other proportions in each slide (Dirichlet 2); one further cluster at
`distance` from one of them (deviation 0.8) is in positive slides only; `shift` moves all patches of a slide, `--warp`
also scales each feature and turns the space by about that part, another way in each slide; with `--kinds 3` positive
slides take turns among three such clusters. Tested on 100 new slides. The recipe of `needle` was chosen on seeds 100 to
105 and 302 to 305; report others. Every value may be several.
The oracle is a logistic regression on true patch labels (features as they are), a slide scores the mean of its top 5.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold
from mil.run.ensemble import load_head, predict_slide
from mil.tasks.classification import Classification
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

DIM, CLUSTERS, PATCHES, VAL, TEST = 64, 20, 5000, 20, 100
CPU = torch.device("cpu")


def make(
    slides: int, positives: int, shift: float, distance: float, seed: int, warp: float = 0.0, kinds: int = 1
) -> tuple[Cohort, Fold]:
    """Train, val and test slides in this order; in every second one the first `positives` patches are positive."""
    rng = np.random.default_rng(seed)
    centres, ways = rng.standard_normal((CLUSTERS, DIM)), rng.standard_normal((kinds, DIM))
    odd = centres[:kinds] + distance * ways / np.linalg.norm(ways, axis=1, keepdims=True)
    count = slides + VAL + TEST
    labels = np.arange(count) % 2
    features = []
    for number, label in enumerate(labels):
        x = centres[rng.choice(CLUSTERS, PATCHES, p=rng.dirichlet(np.full(CLUSTERS, 2.0)))]
        if label:
            x[:positives] = odd[number // 2 % kinds]
        x = x + 0.8 * rng.standard_normal((PATCHES, DIM), dtype=np.float32) + shift * rng.standard_normal(DIM)
        if warp:
            turn = rng.standard_normal((DIM, DIM)) / DIM**0.5
            x = x * (1 + warp * rng.standard_normal(DIM)) + warp * x @ (turn - turn.T)
        features.append(torch.from_numpy(x).half())
    ids = np.array([f"s{i:04d}" for i in range(count)])
    cohort = Cohort(
        ids, ids, Classification(("neg", "pos"), 1), labels, None, None, tuple(features), (), (), "", "", (), {}, ()
    )
    train, val, test = np.split(np.arange(count), [slides, slides + VAL])
    return cohort, Fold(0, 0, 0, train, val, test)


def oracle(cohort: Cohort, fold: Fold, positives: int) -> tuple[float, float]:
    x = [cohort.features[i].float().numpy() for i in fold.train]
    found = np.concatenate([s[:positives] for s, c in zip(x, cohort.labels[fold.train], strict=True) if c])
    other = np.concatenate([s[:200] for s, c in zip(x, cohort.labels[fold.train], strict=True) if not c])
    truth = np.r_[np.ones(len(found)), np.zeros(len(other))]
    model = LogisticRegression(max_iter=300).fit(np.concatenate([found, other]), truth)
    scores = [model.decision_function(cohort.features[i].float().numpy()) for i in fold.test]
    return aurocs(cohort, fold, [np.sort(s)[-5:].mean() for s in scores], scores, positives)


def of_head(name: str, cohort: Cohort, fold: Fold, positives: int, seed: int) -> tuple[float, float]:
    config = TrainConfig(head=name, epochs=30, seed=seed)
    plan = plan_training(cohort, [fold], config, CPU)
    [(checkpoint, _)] = train_folds(cohort, [fold], config, CPU, lambda *_: None, plan)
    head = load_head(checkpoint, CPU)
    predictions = [predict_slide(head, cohort.features[i], CPU, cohort.task, {}) for i in fold.test]
    patches = [p.attention if name == "gated-abmil" else p.patch_logits[:, 1] for p in predictions]
    return aurocs(cohort, fold, [p.answer[1] for p in predictions], patches, positives)


def aurocs(
    cohort: Cohort, fold: Fold, slides: list[float], patches: list[NDArray[np.float64]], positives: int
) -> tuple[float, float]:
    truth = np.zeros((len(fold.test), PATCHES), bool)
    truth[cohort.labels[fold.test] == 1, :positives] = True
    return float(roc_auc_score(cohort.labels[fold.test], slides)), float(
        roc_auc_score(truth.ravel(), np.ravel(patches))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=["needle"])
    parser.add_argument("--slides", nargs="+", type=int, default=[100])
    parser.add_argument("--positives", nargs="+", type=int, default=[10])
    parser.add_argument("--shift", nargs="+", type=float, default=[0.3])
    parser.add_argument("--distance", nargs="+", type=float, default=[4.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[200])
    parser.add_argument("--warp", type=float, default=0.0)
    parser.add_argument("--kinds", type=int, default=1)
    a = parser.parse_args()
    print("slides positives shift distance seed head slide_auroc patch_auroc seconds")
    for setting in itertools.product(a.slides, a.positives, a.shift, a.distance, a.seeds):
        cohort, fold = make(*setting, warp=a.warp, kinds=a.kinds)
        for name in ["oracle", *a.heads]:
            start = time.perf_counter()
            known = name == "oracle"
            slide, patch = (
                oracle(cohort, fold, setting[1]) if known else of_head(name, cohort, fold, setting[1], setting[4])
            )
            print(*setting, name, f"{slide:.3f} {patch:.3f} {time.perf_counter() - start:.0f}", flush=True)


if __name__ == "__main__":
    main()
