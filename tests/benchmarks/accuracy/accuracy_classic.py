"""Ways of train-mil side by side on classic sets of bags: the default now and before, others, plain trees.

Accuracy of bags at the fold's own threshold and, after a stroke, the mean of the folds' AUROC; 10 folds, the same for
all, out of fold, means over repeats. Plain trees are 500 extremely randomised ones (Geurts et al. 2006) on each bag's
mean, minimum and maximum, cut at 0.5. Published is the accuracy of gated attention (Ilse et al. 2018), whose folds are
others. A set is musk1, fox or a CSV file of your own with the columns bag, label and one a feature.

    python tests/benchmarks/accuracy/accuracy_classic.py [--sets musk1,fox,FILE.csv] [--repeats 1]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from accuracy_inner_folds import judged, of_folds
from accuracy_probabilities import tested
from sklearn.ensemble import ExtraTreesClassifier

from mil.cohort.cohort import Cohort
from mil.cohort.splits import make_folds
from mil.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import load_bags
from real_data import DATA

WAYS = {  # settings
    "default now": {},
    "a quarter held out (default before)": {"inner_folds": 0},
    "`--val-fraction 0`": {"inner_folds": 0, "val_fraction": 0.0},
    "`--head bag-stats`": {"head": "bag-stats"},
    "`--head auto`": {"head": "auto"},
}
PUBLISHED = {"musk1": "0.900", "fox": "0.603"}


def told(accuracy: float, area: float) -> str:
    return f"{accuracy:.3f} / {area:.3f}"


def by_train_mil(cohort: Cohort, config: TrainConfig) -> str:
    figures = np.mean([judged(folds) for folds in tested(cohort, config)], axis=0)
    return told(figures[0], figures[3])


def by_plain_trees(cohort: Cohort, config: TrainConfig) -> str:
    bags = [bag.numpy().astype(np.float64) for bag in cohort.features]
    x = np.stack([np.concatenate([bag.mean(0), bag.min(0), bag.max(0)]) for bag in bags])
    folds = []
    for fold in make_folds(cohort, config.split_plan()):
        trees = ExtraTreesClassifier(500, random_state=fold.number).fit(x[fold.train], cohort.labels[fold.train])
        folds.append((cohort.labels[fold.test] == cohort.positive, trees.predict_proba(x[fold.test])[:, 1]))
    right = np.concatenate([(p >= 0.5) == truth for truth, p in folds])
    return told(right.mean(), of_folds(folds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="musk1,fox")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not DATA.is_dir() and given.sets == parser.get_default("sets"):
        return
    print("| set |", *(f"{way} |" for way in WAYS), "plain trees | published |")
    print("| --- |", *("--- |" for _ in WAYS), "--- | --- |", flush=True)
    for name in given.sets.split(","):
        cohort, protocol = load_bags(name), {"folds": 10, "repeats": given.repeats}
        print(f"| {name} |", end="", flush=True)
        for settings in WAYS.values():
            print(f" {by_train_mil(cohort, TrainConfig(**protocol, **settings))} |", end="", flush=True)
        print(f" {by_plain_trees(cohort, TrainConfig(**protocol))} | {PUBLISHED.get(name, '–')} |", flush=True)


if __name__ == "__main__":
    main()
