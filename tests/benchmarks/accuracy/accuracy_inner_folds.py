"""What inner folds and several heads gain: one held-out part, none, or K models a fold, as `train-mil` is.

Accuracy at the fold's own threshold; AUROC over all folds, the same before calibration, and the mean of the folds' own;
log loss, and the slope of calibration (1: neither too sure nor too shy; Cox 1958), means over repeats; seconds of one
core. With `auto` also the mean of the folds' AUROC that each of its heads has alone. MUSK1 and Fox with 10 folds, UCSB
breast (as accuracy_ucsb.py embeds it) with 5, out of fold; generated cohorts, as `tenth-60` (60 slides of a kind of
accuracy_probabilities.py), judged on 1,000 new slides, a cohort a repeat.

    python tests/benchmarks/accuracy/accuracy_inner_folds.py [--sets musk1,fox,few-300] [--head auto] [--repeats 1]
    python tests/benchmarks/accuracy/accuracy_inner_folds.py --sets few-100,few-200,few-400 --repeats 4 \\
        --ways "held out: a quarter,5 inner folds"
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy_heads import embedded_ucsb
from accuracy_probabilities import CPU, Tested, drawn, slope, tested
from sklearn.metrics import log_loss, roc_auc_score

from mil.cohort.cohort import Cohort
from mil.heads.bags import pack
from mil.heads.committee import Committee
from mil.run.ensemble import load_head
from mil.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import load_bags

WAYS = {  # of stopping: its settings
    "held out: a quarter": {"inner_folds": 0},
    "nothing held out": {"inner_folds": 0, "val_fraction": 0.0},
    "5 inner folds": {"inner_folds": 5},
    "8 inner folds": {"inner_folds": 8},
}
FIRST_DRAW = 20


def get_cohorts(name: str, repeats: int) -> tuple[list[Cohort], dict[str, int]]:
    """And the settings that go with them."""
    if "-" in name:
        kind, slides = name.split("-")
        return [drawn(kind, int(slides), FIRST_DRAW + repeat) for repeat in range(repeats)], {}
    if name == "ucsb":
        return [embedded_ucsb()], {"folds": 5, "repeats": repeats}
    return [load_bags(name)], {"folds": 10, "repeats": repeats}


def judged(folds: Sequence[Tested]) -> list[float]:
    p, raw, truth = (np.concatenate(part) for part in list(zip(*folds, strict=True))[:3])
    right = np.concatenate([(of.p >= of.checkpoint.calibration["threshold"]) == of.truth for of in folds])
    area, before, own = roc_auc_score(truth, p), roc_auc_score(truth, raw), of_folds([(of.truth, of.p) for of in folds])
    return [right.mean(), area, before, own, log_loss(truth, p), slope(p, truth)]


def of_folds(folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean AUROC; truth and scores of each."""
    return float(np.mean([roc_auc_score(*fold) for fold in folds]))


@torch.no_grad()
def alone(cohort: Cohort, of: Tested) -> dict[str, np.ndarray]:
    """Log-odds of the fold's test slides by each of the heads that are weighed."""
    head, names = load_head(of.checkpoint, CPU), np.array(of.checkpoint.members)
    assert isinstance(head, Committee)
    logits = torch.stack([torch.cat([m(pack([cohort.features[i]])).logits for i in of.slides]) for m in head.heads])
    odds = (logits[..., cohort.positive] - logits[..., 1 - cohort.positive]).numpy()  # (M, n)
    return {name: odds[names == name].mean(axis=0) for name in dict.fromkeys(names.tolist())}


def bench(name: str, way: str, head: str, repeats: int) -> None:
    cohorts, settings = get_cohorts(name, repeats)
    config = TrainConfig(head=head, **settings, **WAYS[way])
    start = time.process_time()
    results = [(cohort, folds) for cohort in cohorts for folds in tested(cohort, config)]
    seconds = time.process_time() - start
    found = " | ".join(f"{value:.3f}" for value in np.mean([judged(folds) for _, folds in results], axis=0))
    print(f"| {name} | `{head}` | {way} | {found} | {seconds:.0f} |", flush=True)
    if not results[0][1][0].checkpoint.weights:
        return
    each = [[(of.truth, alone(cohort, of), of.checkpoint.weights) for of in folds] for cohort, folds in results]
    areas, weights = {}, {}
    for single in each[0][0][2]:
        areas[single] = np.mean([of_folds([(truth, odds[single]) for truth, odds, _ in folds]) for folds in each])
        weights[single] = np.mean([of[single] for folds in each for _, _, of in folds])
    said = ", ".join(f"{single} {areas[single]:.3f} (weight {weights[single]:.2f})" for single in areas)
    print(f"  AUROC of the folds, alone: {said}; mean {np.mean(list(areas.values())):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="musk1,fox,ucsb,tenth-60,few-300")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--head", default="gated-abmil")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| cohort | head | stopped on | accuracy | AUROC | before | of the folds | log loss | slope | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in given.sets.split(","):
        for head in given.head.split(","):
            for way in given.ways.split(","):
                bench(name, way, head, given.repeats)


if __name__ == "__main__":
    main()
