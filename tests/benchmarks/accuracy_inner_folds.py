"""What inner folds gain: one held-out part, none, or K models a fold, on real and generated cohorts, as `train-mil` is.

Everything is out of fold: accuracy at the fold's own threshold and at 0.5, AUROC over all folds and the mean of the
folds' own, log loss, and the slope of calibration (1: neither too sure nor too shy; Cox 1958), means over repeats.
MUSK1 and Fox with 10 folds, UCSB breast (as accuracy_ucsb.py embeds it) and generated cohorts with 5. A generated
cohort has 40 patches of 24 features a slide, of which a tenth shows a positive slide, see accuracy_probabilities.py.

    python tests/benchmarks/accuracy_inner_folds.py [--sets musk1,fox,ucsb,60,300] [--repeats 2] [--head gated-abmil]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accuracy_heads import embedded_ucsb
from accuracy_probabilities import make_cohort
from bench_training import load_bags
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import Fold, make_folds
from mil.run.checkpoint import Checkpoint
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

CPU = torch.device("cpu")
WAYS = {  # of stopping: its settings
    "held out: a quarter": {"inner_folds": 0},
    "nothing held out": {"inner_folds": 0, "val_fraction": 0.0},
    "5 inner folds": {"inner_folds": 5},
    "8 inner folds": {"inner_folds": 8},
}


def get_cohort(name: str) -> tuple[Cohort, int]:
    """And its number of folds."""
    if name == "ucsb":
        return embedded_ucsb(), 5
    if not name.isdigit():
        return load_bags(name), 10
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder, "features"), 0.5, seed=20, slides=int(name))
        return load_cohort(table.parent, table, "tumour"), 5


def figures(cohort: Cohort, config: TrainConfig) -> list[float]:
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    trained = [one for group in plan.groups for one in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    of_folds = [_tested(cohort, fold, checkpoint) for fold, (checkpoint, _) in zip(folds, trained, strict=True)]
    repeats = [
        _judged([of for fold, of in zip(folds, of_folds, strict=True) if fold.repeat == repeat])
        for repeat in range(config.repeats)
    ]
    return list(np.mean(repeats, axis=0))


def _tested(cohort: Cohort, fold: Fold, checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities of the positive class and truth (test,), and the threshold."""
    head, calibration = load_head(checkpoint, CPU), checkpoint.calibration
    answers = [predict_slide(head, cohort.features[i], CPU, cohort.task, calibration).answer for i in fold.test]
    truth = cohort.labels[fold.test] == cohort.positive
    return np.stack(answers)[:, cohort.positive], truth, calibration["threshold"]


def _judged(of_folds: list[tuple[np.ndarray, np.ndarray, float]]) -> list[float]:
    p, truth = (np.concatenate([of[i] for of in of_folds]) for i in (0, 1))
    right = np.concatenate([(p >= threshold) == truth for p, truth, threshold in of_folds])
    own = np.mean([roc_auc_score(truth, p) for p, truth, _ in of_folds])
    odds = np.log(p / (1 - p)).clip(-20, 20)[:, None]
    slope = LogisticRegression(C=np.inf).fit(odds, truth).coef_[0, 0]
    return [right.mean(), ((p >= 0.5) == truth).mean(), roc_auc_score(truth, p), own, log_loss(truth, p), slope]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="musk1,fox,ucsb,60,300")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--head", default="gated-abmil")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| cohort | stopped on | accuracy | at 0.5 | AUROC | of the folds | log loss | slope | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in given.sets.split(","):
        cohort, folds = get_cohort(name)
        for way in given.ways.split(","):
            config = TrainConfig(head=given.head, folds=folds, repeats=given.repeats, **WAYS[way])
            start = time.perf_counter()
            found = " | ".join(f"{value:.3f}" for value in figures(cohort, config))
            print(f"| {name} | {way} | {found} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
