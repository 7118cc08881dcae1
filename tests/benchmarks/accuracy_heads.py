"""How well each head does on labelled data, with intervals.

MUSK1 and Fox in the protocol of Ilse et al. 2018: 10 folds, all nine tenths trained on to the last epoch, threshold
0.5, accuracy of bags. Any cohort of feature files (`--features DIR --labels TABLE --target COLUMN`): 5 folds by
patient, AUROC of slides. Nothing is stopped or chosen on held-out data, settings are the defaults; intervals are from a
bootstrap over patients (bags), each with the mean over its repeats.

`--heads a,b` and `--repeats N` (5) do a part.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_training import DATA, load_bags
from sklearn.metrics import roc_auc_score

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import make_folds
from mil.heads.registry import HEADS
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

CPU = torch.device("cpu")
DRAWS = 2000


def out_of_fold(cohort: Cohort, config: TrainConfig) -> np.ndarray:
    """(repeats, S) probabilities of the positive class."""
    folds = [replace(fold, val=fold.val[:0]) for fold in make_folds(cohort, config.split_plan())]
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


def with_interval(measure, scores: np.ndarray, cohort: Cohort) -> str:
    labels = (cohort.labels == cohort.positive).astype(int)
    patients, own = np.unique(cohort.patient_ids, return_inverse=True)
    slides = [np.flatnonzero(own == p) for p in range(len(patients))]
    rng, drawn = np.random.default_rng(0), []
    while len(drawn) < DRAWS:
        rows = np.concatenate([slides[p] for p in rng.integers(len(patients), size=len(patients))])
        if len(set(labels[rows])) == 2:
            drawn.append(measure(scores[:, rows], labels[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{measure.__name__} {measure(scores, labels):.3f} ({low:.3f}–{high:.3f})"


def bench(name: str, cohort: Cohort, heads: Sequence[str], folds: int, repeats: int) -> None:
    torch.set_num_threads(1)
    for head in heads:
        config = TrainConfig(head=head, folds=folds, repeats=repeats, val_fraction=0.0)
        start = time.perf_counter()
        scores = out_of_fold(cohort, config)
        seconds = time.perf_counter() - start
        figures = ", ".join(with_interval(measure, scores, cohort) for measure in (accuracy, auroc))
        print(f"{name}, {head}: {figures}, {repeats} repeats, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--sets", default="musk1,fox")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--target", default="label")
    arguments = parser.parse_args()
    chosen = arguments.heads.split(",")
    if arguments.features:
        loaded = load_cohort(arguments.features, arguments.labels, arguments.target)
        bench(arguments.features.name, loaded, chosen, 5, arguments.repeats)
    elif DATA.is_dir():
        for data_set in arguments.sets.split(","):
            bench(data_set, load_bags(data_set), chosen, 10, arguments.repeats)
