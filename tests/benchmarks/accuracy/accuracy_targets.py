"""What targets that are learnt at once gain or lose against a run for each, on the same slides in the same folds.

Generated cohorts of one slide a patient, 40 patches of 24 features each. Each target shows in a tenth of the patches of
its positive slides, which lie --shift deviations away in a direction of its own; a slide may be positive in both. With
--same-patches a fifth of the patches of every slide is tumour, --shift deviations away from the others, and each target
moves these by one along a direction of its own, forwards where it is positive and back where it is not. Of the second
target half of the slides have no label: its own run is on the others. AUROCs out of three folds with one model each,
and the paired difference over seeds (mean, 95 % interval by t).

    python tests/benchmarks/accuracy/accuracy_targets.py [--seeds 6] [--slides 80] [--head gated-abmil] [--shift 3.5]
        [--same-patches] [--shared-attention]
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import Fold, make_folds
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.repeatable import repeatable
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from planted_cohorts import write_features

PATCHES, DIM, WITNESS = 40, 24, 0.1
TARGETS = {"first": "all labels", "second": "half of them"}


def make_cohort(folder: Path, slides: int, shift: float, same_patches: bool, seed: int) -> pd.DataFrame:
    """Feature files in `folder`, and their slide table."""
    rng, rows, shown = np.random.default_rng(seed), [], round(WITNESS * PATCHES)
    *directions, tumour = np.linalg.qr(rng.normal(size=(DIM, 3)))[0].T
    for i in range(slides):
        truth = i % 2, i // 2 % 2
        features = rng.normal(size=(PATCHES, DIM)) + 0.5 * rng.normal(size=DIM)
        if same_patches:
            features[: 2 * shown] += shift * tumour
        for at, (positive, direction) in enumerate(zip(truth, directions, strict=True)):
            if same_patches:
                features[: 2 * shown] += 2 * (positive - 0.5) * direction
            else:
                features[at * shown : (at + 1) * shown] += positive * shift * direction
        write_features(folder, f"s{i:03d}", rng.permutation(features))
        rows.append((f"s{i:03d}", str(truth[0]), str(truth[1]) if i // 4 % 2 else ""))
    return pd.DataFrame(rows, columns=["slide_id", *TARGETS])


def aurocs(folder: Path, told: argparse.Namespace, seed: int) -> list[tuple[float, float]]:
    """At once and alone, of each target."""
    table, config = (
        make_cohort(folder, told.slides, told.shift, told.same_patches, seed),
        TrainConfig(head=told.head, seed=seed, folds=3, inner_folds=0, device="cpu"),
    )
    both = load_cohort(folder, table, ",".join(TARGETS))
    folds = make_folds(both, config.split_plan())
    said, found = out_of_fold(both, folds, config, told.shared_attention), []
    for k, (name, task) in enumerate(zip(both.task.names, both.task.tasks, strict=True)):
        has = ~np.isnan(both.targets[:, k])
        own = load_cohort(folder, table[table[name] != ""], name)
        alone = out_of_fold(own, [_of(fold, np.flatnonzero(has)) for fold in folds], config)
        found.append((task.score(said[has, 2 * k : 2 * k + 2], own.targets), task.score(alone, own.targets)))
    return found


def out_of_fold(cohort: Cohort, folds: Sequence[Fold], config: TrainConfig, shared: bool = False) -> np.ndarray:
    """What models say of the slides that they did not see (S, C)."""
    answers, cpu = np.empty((len(cohort.slide_ids), len(cohort.task.output_names))), torch.device("cpu")
    with repeatable(1):
        plan = plan_training(cohort, folds, config, cpu)
        plan = replace(plan, shape=replace(plan.shape, targets=())) if shared else plan
        for group in plan.groups:
            trained = train_folds(cohort, group, config, cpu, lambda *_: None, plan)
            for fold, (checkpoint, _) in zip(group, trained, strict=True):
                head = load_head(checkpoint, cpu)
                for i in fold.test:
                    said = predict_slide(head, cohort.features[i], cpu, cohort.task, checkpoint.calibration)
                    answers[i] = said.answer
    return answers


def _of(fold: Fold, kept: np.ndarray) -> Fold:
    """The same of those slides that are kept, whose places are others among themselves."""

    def part(slides: np.ndarray) -> np.ndarray:
        return np.searchsorted(kept, slides[np.isin(slides, kept)])

    parts = {name: part(getattr(fold, name)) for name in ("train", "val", "test")}
    return replace(fold, **parts, inner=tuple(map(part, fold.inner)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--slides", type=int, default=80)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--shift", type=float, default=3.5)
    parser.add_argument("--same-patches", action="store_true")
    parser.add_argument("--shared-attention", action="store_true", help="one for all targets, as in earlier releases")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(aurocs(Path(folder), arguments, seed))
        print(f"seed {seed}: {found[-1]}", flush=True)
    print("\n| target | AUROC at once | AUROC of its own run | gained at once |\n| --- | --- | --- | --- |")
    for (name, labels), values in zip(TARGETS.items(), np.array(found).transpose(1, 2, 0), strict=True):
        gained = values[0] - values[1]
        half = stats.t.ppf(0.975, len(gained) - 1) * gained.std(ddof=1) / np.sqrt(len(gained))
        said = f"{gained.mean():+.3f} ({gained.mean() - half:+.3f} to {gained.mean() + half:+.3f})"
        print(f"| {name}, {labels} | {values[0].mean():.3f} | {values[1].mean():.3f} | {said} |")


if __name__ == "__main__":
    main()
