"""Are probabilities true? Those of `train-mil` as it is, where 5, 10, 50 and 90 % of the slides are positive.

Generated cohorts of 300 slides with 10 patches of 24 features, of which a tenth, one at least, shows a positive slide;
slides differ from each other as well. Judged on 1,000 new slides of the same kind. Printed, means over the drawn
cohorts: the mean probability (true: the prevalence), the Brier score beside that of always saying the prevalence, the
slope of calibration over all of them (1: neither too sure nor too shy; Cox 1958), the smallest and largest of a single
cohort, the log loss, the AUROC. Then UCSB breast (as accuracy_ucsb.py embeds it) with 5 of its 26 malignant images, out
of fold, mean over draws of these five.

    python tests/benchmarks/accuracy/accuracy_probabilities.py [--heads gated-abmil,mean,bag-stats] [--cases 0.05,ucsb]
        [--draws 30,31]
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accuracy_heads import embedded_ucsb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from mil.cohort.cohort import Cohort
from mil.cohort.splits import make_folds
from mil.run.checkpoint import Checkpoint
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import cohort_of
from real_data import DATA

CPU = torch.device("cpu")
DRAWS = "10,11"  # the priors of the calibration were chosen on others
SLIDES, NEW, DIM = 300, 1000, 24
KINDS = {  # of generated cohorts: patches a slide, share that shows, by how many deviations
    "few": (10, 0.1, 4.0),
    "all": (20, 1.0, 0.8),
    "tenth": (20, 0.1, 3.5),
    "hundredth": (100, 0.01, 7.0),
    "spread": (20, 1.0, 0.0),  # three features are 1.35 times as wide instead
}


class Tested(NamedTuple):
    """A fold's model on its test slides, of two classes."""

    p: np.ndarray  # (n,) of the positive one
    raw: np.ndarray  # (n,) the same before calibration
    truth: np.ndarray  # (n,) bool
    slides: np.ndarray  # (n,) positions
    checkpoint: Checkpoint


def drawn(kind: str, slides: int, seed: int, prevalence: float = 0.5, new: int = NEW) -> Cohort:
    """`slides` to train on, and `new` ones to test."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=DIM)
    direction /= np.linalg.norm(direction)
    patches, witness, shift = KINDS[kind]
    number = np.concatenate([np.arange(slides) / slides, np.arange(new) / max(new, 1)])
    bags = []
    for positive in number < prevalence:
        bag = rng.normal(size=(patches, DIM)) + 0.5 * rng.normal(size=DIM)
        if positive:
            bag[: max(1, rng.binomial(patches, witness))] += shift * direction
            bag[:, :3] *= 1.35 if kind == "spread" else 1.0
        bags.append(bag)
    cohort = cohort_of((number < prevalence).tolist(), [bag.astype(np.float16) for bag in bags])
    return replace(cohort, splits=np.array(["train"] * slides + ["test"] * new))


def tested(cohort: Cohort, config: TrainConfig) -> list[list[Tested]]:
    """The folds of each repeat."""
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    trained = [one for group in plan.groups for one in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    found: list[list[Tested]] = [[] for _ in range(config.repeats)]
    for fold, (checkpoint, _) in zip(folds, trained, strict=True):
        head, at = load_head(checkpoint, CPU), cohort.positive
        raw = [predict_slide(head, cohort.features[i], CPU, cohort.task, {}).answer for i in fold.test]
        p = cohort.task.calibrated(np.stack(raw), checkpoint.calibration)[:, at]
        found[fold.repeat].append(
            Tested(p, np.stack(raw)[:, at], cohort.labels[fold.test] == at, fold.test, checkpoint)
        )
    return found


def slope(p: np.ndarray, truth: np.ndarray) -> float:
    odds = np.log(p / (1 - p)).clip(-20, 20)[:, None]
    return float(LogisticRegression(C=np.inf).fit(odds, truth).coef_[0, 0])


def row(name: str, share: float, cohorts: Iterable[Cohort], config: TrainConfig) -> None:
    both = [[np.concatenate(part) for part in list(zip(*tested(c, config)[0], strict=True))[:3]] for c in cohorts]
    p, _, truth = (np.concatenate(part) for part in zip(*both, strict=True))
    area = np.mean([roc_auc_score(truth, p) for p, _, truth in both])
    constant = truth.mean() * (1 - truth.mean())
    values = [f"{value:.3f}" for value in (p.mean(), np.square(p - truth).mean(), constant)]
    slopes = [slope(p, truth) for p, _, truth in both]
    values += [f"{slope(p, truth):.2f}", f"{min(slopes):.2f}–{max(slopes):.2f}"]
    values += [f"{value:.3f}" for value in (log_loss(truth, p), area)]
    print(f"| `{config.head}` | {name}{share:.0%} |", *(f"{value} |" for value in values), flush=True)


def thinned(cohort: Cohort, positives: int, seed: int) -> Cohort:
    """With so many of the positive slides, of as many sources as there are."""
    rng, positive = np.random.default_rng(seed), cohort.labels == cohort.positive
    order = rng.permutation(np.flatnonzero(positive))
    _, first = np.unique(cohort.patient_ids[order], return_index=True)
    kept = np.sort(np.concatenate([np.flatnonzero(~positive), order[np.sort(first)][:positives]]))
    return replace(
        cohort,
        **{name: getattr(cohort, name)[kept] for name in ("slide_ids", "patient_ids", "targets")},
        features=[cohort.features[i] for i in kept],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="gated-abmil,mean,bag-stats")
    parser.add_argument("--cases", default="0.05,0.1,0.5,0.9,ucsb", help="prevalences, and ucsb")
    parser.add_argument("--draws", default=DRAWS, help="seeds of the cohorts")
    given = parser.parse_args()
    draws = [int(draw) for draw in given.draws.split(",")]
    torch.set_num_threads(1)
    print("| head | prevalence | mean probability | Brier | of the prevalence | slope | of each | log loss | AUROC |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for case in given.cases.split(","):
        if case == "ucsb" and not DATA.is_dir():
            continue
        if case == "ucsb":
            images = embedded_ucsb()
            cohorts = [thinned(images, 5, seed) for seed in draws]
            name, share = "UCSB, ", float(np.mean(cohorts[0].labels == images.positive))
        else:
            name, share = "", float(case)
            cohorts = [drawn("few", SLIDES, seed, share) for seed in draws]
        for head in given.heads.split(","):
            row(name, share, cohorts, TrainConfig(head=head, folds=3, inner_folds=5))


if __name__ == "__main__":
    main()
