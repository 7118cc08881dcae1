"""How well each head does on labelled data, with intervals: the table of heads, a row as soon as it is known.

MUSK1 and Fox in the protocol of Ilse et al. 2018: 10 folds, all nine tenths trained on to the last epoch, threshold
0.5, accuracy of bags. UCSB breast as accuracy_ucsb.py embeds it, and any cohort of feature files: 5 folds by patient,
AUROC of slides. Settings are the defaults, but nothing is stopped on held-out data, unless `--val-fraction` says so;
intervals are from a bootstrap over patients (bags), each with the mean over its repeats.

    python tests/benchmarks/accuracy/accuracy_heads.py [--heads a,b] [--sets musk1,fox,ucsb] [--repeats 5]
    python tests/benchmarks/accuracy/accuracy_heads.py --features DIR --labels TABLE --target COLUMN
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy_ucsb import TARGET, embed
from sklearn.metrics import roc_auc_score

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import make_folds
from mil.heads.registry import HEADS
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import load_bags
from real_data import DATA

CPU = torch.device("cpu")
DRAWS = 2000
Measure = Callable[[np.ndarray, np.ndarray], float]  # of scores (repeats, S) and labels (S,)


def out_of_fold(cohort: Cohort, config: TrainConfig) -> np.ndarray:
    """(repeats, S) probabilities of the positive class."""
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    trained = [both for group in plan.groups for both in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    scores = np.full((config.repeats, len(cohort.labels)), np.nan)
    for fold, (checkpoint, _) in zip(folds, trained, strict=True):
        head = load_head(checkpoint, CPU)
        for i in fold.test:
            scores[fold.repeat, i] = predict_slide(head, cohort.features[i], CPU, cohort.task, {}).answer[
                cohort.positive
            ]
    return scores


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(((scores >= 0.5) == (labels == 1)).mean())


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([roc_auc_score(labels, repeat) for repeat in scores]))


def with_interval(measure: Measure, scores: np.ndarray, cohort: Cohort) -> str:
    labels = (cohort.labels == cohort.positive).astype(int)
    patients, own = np.unique(cohort.patient_ids, return_inverse=True)
    slides = [np.flatnonzero(own == p) for p in range(len(patients))]
    rng, drawn = np.random.default_rng(0), []
    while len(drawn) < DRAWS:
        rows = np.concatenate([slides[p] for p in rng.integers(len(patients), size=len(patients))])
        if len(set(labels[rows])) == 2:
            drawn.append(measure(scores[:, rows], labels[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{measure(scores, labels):.3f} ({low:.3f}–{high:.3f})"


def embedded_ucsb() -> Cohort:
    with tempfile.TemporaryDirectory() as folder:
        table, features = embed(Path(folder))
        return load_cohort(features, table, TARGET)


SETS = {  # name: how to get it, folds, what is told
    "musk1": (lambda: load_bags("musk1"), 10, accuracy),
    "fox": (lambda: load_bags("fox"), 10, accuracy),
    "ucsb": (embedded_ucsb, 5, auroc),
}


def bench(sets: dict[str, tuple[Cohort, int, Measure]], heads: Sequence[str], repeats: int, val: float) -> None:
    torch.set_num_threads(1)
    print("| head |", *(f"{name}, {measure.__name__} |" for name, (_, _, measure) in sets.items()), "seconds |")
    print("| --- |", *("--- |" for _ in sets), "--- |", flush=True)
    for head in heads:
        start = time.perf_counter()
        print(f"| `{head}` |", end="")
        for cohort, folds, measure in sets.values():
            config = TrainConfig(head=head, folds=folds, repeats=repeats, val_fraction=val)
            print(f" {with_interval(measure, out_of_fold(cohort, config), cohort)} |", end="", flush=True)
        print(f" {time.perf_counter() - start:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--val-fraction", type=float, default=0.0)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--target", default="label")
    given = parser.parse_args()
    if given.features:
        sets = {given.features.name: (load_cohort(given.features, given.labels, given.target), 5, auroc)}
    elif DATA.is_dir():
        sets = {name: (SETS[name][0](), *SETS[name][1:]) for name in given.sets.split(",")}
    else:
        return
    bench(sets, given.heads.split(","), given.repeats, given.val_fraction)


if __name__ == "__main__":
    main()
