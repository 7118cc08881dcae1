"""Are the default settings of train-mil good ones? Nested selection on MUSK1, Fox and any cohort of feature files.

Each candidate differs from the defaults in one setting. Within the training part of each of 5 outer folds, 3 inner
folds judge all candidates by log loss, once what they say is calibrated as train-mil does it; the best is then trained
on the outer training part, calibrated by what its inner folds said, and judged on the outer test part, beside the
defaults. So the two outer figures are comparable and neither chose itself; if the nested choice is not better, the
defaults stand. Nothing is stopped early (`val_fraction` 0).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import Fold
from mil.metrics.bootstrap import PERCENTILES, draw_weights
from mil.metrics.classification import macro_auroc
from mil.run.ensemble import load_head, predict_slide
from mil.tasks.calibration import calibrated, class_shares, fit_calibration
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import load_bags
from real_data import DATA

CPU = torch.device("cpu")
OUTER, INNER, DRAWS = 5, 3, 2000
CANDIDATES = {
    "defaults": {},
    "learning_rate 0.0003": {"learning_rate": 3e-4},
    "learning_rate 0.003": {"learning_rate": 3e-3},
    "epochs 50": {"epochs": 50},
    "epochs 200": {"epochs": 200},
    "batch_slides 2": {"batch_slides": 2},
    "embed_dim 64": {"embed_dim": 64, "attention_dim": 32},
    "embed_dim 256": {"embed_dim": 256, "attention_dim": 128},
    "feature_limit 0": {"feature_limit": 0.0},
    "feature_limit 6": {"feature_limit": 6.0},
    "feature_limit 10": {"feature_limit": 10.0},
    "dropout 0": {"dropout": 0.0},
    "dropout 0.5": {"dropout": 0.5},
    "weight_decay 0.1": {"weight_decay": 0.1},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "focal": {"loss": "focal"},
    "generalised-cross-entropy": {"loss": "generalised-cross-entropy"},
}


def splits(cohort: Cohort) -> tuple[list[Fold], list[list[Fold]]]:
    """The outer folds and, for each, its inner folds."""

    def parts(among: np.ndarray, count: int, state: int) -> list[np.ndarray]:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=state)
        return [among[test] for _, test in splitter.split(among, cohort.labels[among], cohort.patient_ids[among])]

    everyone, none = np.arange(len(cohort.labels)), np.array([], dtype=np.int64)
    outer, inner = [], []
    for k, test in enumerate(parts(everyone, OUTER, 0)):
        train = np.setdiff1d(everyone, test)
        outer.append(Fold(k, 0, k, train, none, test))
        held_out = parts(train, INNER, k + 1)
        numbers = range(OUTER + k * INNER, OUTER + (k + 1) * INNER)  # of one repeat, so that all are trained together
        inner.append(
            [Fold(n, 0, n, np.setdiff1d(train, own), none, own) for n, own in zip(numbers, held_out, strict=True)]
        )
    return outer, inner


def judge(cohort: Cohort, folds: list[Fold], config: TrainConfig) -> list[np.ndarray]:
    """Probabilities (test, C) of each fold."""
    plan = plan_training(cohort, folds, config, CPU)
    trained = [both for group in plan.groups for both in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    heads = [load_head(checkpoint, CPU) for checkpoint, _ in trained]
    return [
        np.stack([predict_slide(head, cohort.features[i], CPU, cohort.task, {}).answer for i in fold.test])
        for fold, head in zip(folds, heads, strict=True)
    ]


def calibrated_by(
    cohort: Cohort, folds: list[Fold], said: list[np.ndarray], others: list[list[np.ndarray]]
) -> list[list[np.ndarray]]:
    """Probabilities of `others` after the calibration that what is `said` of the folds' test slides asks for."""
    labels = cohort.labels[np.concatenate([fold.test for fold in folds])]
    shares = class_shares(labels, len(cohort.classes))
    temperature, bias = fit_calibration(np.concatenate(said), labels, shares)
    return [[calibrated(p, temperature, bias) for p in of] for of in others]


def figures(cohort: Cohort, folds: list[Fold], probabilities: list[np.ndarray]) -> tuple[float, float]:
    """Log loss and AUROC of all folds' test slides together."""
    labels = cohort.labels[np.concatenate([fold.test for fold in folds])]
    scores = np.concatenate(probabilities)
    return log_loss(labels, scores), roc_auc_score(labels, scores[:, 1])


def gained(cohort: Cohort, folds: list[Fold], said: list[np.ndarray], before: list[np.ndarray]) -> str:
    """AUROC of the folds' test slides together less that of `before`, paired over patients, with its interval."""
    tested = np.concatenate([fold.test for fold in folds])
    weights = draw_weights(cohort.patient_ids[tested].tolist(), DRAWS, 0)
    now, then = (macro_auroc(np.concatenate(p), cohort.labels[tested], weights, 1) for p in (said, before))
    low, high = np.nanpercentile((now - then)[1:], PERCENTILES)
    return f"{now[0] - then[0]:+.3f} ({low:+.3f} to {high:+.3f})"


def bench(name: str, cohort: Cohort, candidates: Mapping[str, Callable[[list[Fold]], list[np.ndarray]]]) -> None:
    """candidates, `defaults` first: each gives probabilities (test, C) of each fold, as `judge` does."""
    torch.set_num_threads(1)
    outer, inner = splits(cohort)
    names, outer_results, inner_losses = list(candidates), {}, {}
    for candidate, judged in candidates.items():
        folds = [*outer, *(fold for own in inner for fold in own)]
        results = judged(folds)
        of_outer, of_inner = [], []
        for k, own in enumerate(inner):
            said = results[OUTER + k * INNER : OUTER + (k + 1) * INNER]
            after, [outer_one] = calibrated_by(cohort, own, said, [said, [results[k]]])
            of_outer.append(outer_one)
            of_inner.append(after)
        outer_results[candidate] = of_outer
        inner_losses[candidate] = [figures(cohort, f, r)[0] for f, r in zip(inner, of_inner, strict=True)]
        raw, area = figures(cohort, folds[OUTER:], results[OUTER:])
        loss = np.mean(inner_losses[candidate])
        tested = figures(cohort, outer, of_outer)
        print(
            f"{name}, {candidate}: inner log loss {raw:.3f}, calibrated {loss:.3f}, AUROC {area:.3f}; "
            f"outer log loss {tested[0]:.3f}, AUROC {tested[1]:.3f}, gained "
            f"{gained(cohort, outer, of_outer, outer_results['defaults'])}",
            flush=True,
        )
    chosen = [names[int(np.argmin([inner_losses[c][k] for c in names]))] for k in range(OUTER)]
    for label, picks in (("defaults", ["defaults"] * OUTER), ("nested choice", chosen)):
        said = [outer_results[pick][k] for k, pick in enumerate(picks)]
        loss, area = figures(cohort, outer, said)
        more = gained(cohort, outer, said, outer_results["defaults"])
        print(f"{name}, {label}: outer log loss {loss:.3f}, AUROC {area:.3f}, gained {more}")
    print(f"{name}, chosen: {', '.join(chosen)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--target", default="label")
    parser.add_argument("--sets", default="musk1,fox")
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    arguments = parser.parse_args()
    if arguments.features:
        loaded = {arguments.features.name: load_cohort(arguments.features, arguments.labels, arguments.target)}
    else:
        loaded = {data_set: load_bags(data_set) for data_set in arguments.sets.split(",") if DATA.is_dir()}
    base = TrainConfig(head=arguments.head, val_fraction=0.0)
    for data_set, bags in loaded.items():
        asked = {name: replace(base, **CANDIDATES[name]) for name in arguments.candidates.split(",")}
        bench(data_set, bags, {name: partial(judge, bags, config=config) for name, config in asked.items()})
