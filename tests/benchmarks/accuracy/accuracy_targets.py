"""What targets that are learnt at once gain or lose against a run for each, on the same slides in the same folds.

Generated cohorts of one slide a patient, 40 patches of 24 features each. Each target shows in a tenth of the patches of
its positive slides, which lie --shift deviations away in a direction of its own; a slide may be positive in both. With
--same-patches a fifth of the patches of every slide is tumour, --shift deviations away from the others, and each target
moves these by one along a direction of its own, forwards where it is positive and back where it is not. Of the second
target half of the slides have no label: its own run is on the others. AUROCs out of three folds with one model each,
and the paired difference over seeds (mean, 95 % interval by t).

Ways of attention, of which all after the first are compared with it too: each target's `own`, as `gated-abmil` has it,
one that is `shared`, as in earlier releases, the `mean` of both, or a `sum`, where scores of each target's own, which
start at 0, are added to those shared.

    python tests/benchmarks/accuracy/accuracy_targets.py [--seeds 6] [--first-seed 0] [--slides 80] [--shift 3.5]
        [--same-patches] [--attention own,shared,mean,sum]
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import Fold, make_folds
from mil.heads.bags import Bags, segment_softmax
from mil.heads.head import HeadShape, MilOutput
from mil.heads.zoo import gated_abmil
from mil.heads.zoo.gated_abmil import GatedABMIL
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


class MeanAttention(GatedABMIL):
    """Each target's attention is the mean of its own and one that is shared."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.score = nn.Linear(shape.attention_dim, 1 + len(shape.targets))

    def pool(self, embedded: Tensor, bags: Bags) -> MilOutput:
        attention = segment_softmax(self.scores(embedded), bags.sizes)
        return self._pool_each(embedded, (attention[:, :1] + attention[:, 1:]) / 2, bags)


class SumAttention(GatedABMIL):
    """Scores of each target's own, from 0, are added to those shared."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.score = nn.Linear(shape.attention_dim, 1)
        self.own = nn.Linear(shape.attention_dim, len(shape.targets), bias=False)
        nn.init.zeros_(self.own.weight)

    def scores(self, embedded: Tensor) -> Tensor:
        gated = torch.tanh(self.value(embedded)) * torch.sigmoid(self.gate(embedded))
        scores: Tensor = self.score(gated) + self.own(gated)
        return scores


HEADS = {"own": GatedABMIL, "shared": GatedABMIL, "mean": MeanAttention, "sum": SumAttention}


def aurocs(folder: Path, told: argparse.Namespace, seed: int) -> list[list[float]]:
    """Of each target: of its own run, then at once in each way of attention."""
    table, config = (
        make_cohort(folder, told.slides, told.shift, told.same_patches, seed),
        TrainConfig(head="gated-abmil", seed=seed, folds=3, inner_folds=0, device="cpu"),
    )
    both = load_cohort(folder, table, ",".join(TARGETS))
    folds = make_folds(both, config.split_plan())
    found = []
    for k, name in enumerate(TARGETS):
        own = load_cohort(folder, table[table[name] != ""], name)
        kept = np.flatnonzero(~np.isnan(both.targets[:, k]))
        found.append([own.task.score(out_of_fold(own, [_of(fold, kept) for fold in folds], config), own.targets)])
    for way in told.attention.split(","):
        with patch.object(gated_abmil, "GatedABMIL", HEADS[way]):
            said = out_of_fold(both, folds, config, shared=way == "shared")
        for k, task in enumerate(both.task.tasks):
            has = ~np.isnan(both.targets[:, k])
            found[k].append(task.score(said[has, 2 * k : 2 * k + 2], both.targets[has, k].astype(int)))
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
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--slides", type=int, default=80)
    parser.add_argument("--shift", type=float, default=3.5)
    parser.add_argument("--same-patches", action="store_true")
    parser.add_argument("--attention", default="own", help=f"one or more of {', '.join(HEADS)}")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(aurocs(Path(folder), arguments, seed))
        print(f"seed {seed}: {found[-1]}", flush=True)
    print("\n| target | attention | AUROC | of its own run | gained at once | against the first |\n|" + " --- |" * 6)
    for (name, labels), values in zip(TARGETS.items(), np.array(found).transpose(1, 2, 0), strict=True):
        for way, own in zip(arguments.attention.split(","), values[1:], strict=True):
            gained, against = _difference(own - values[0]), _difference(own - values[1])
            print(f"| {name}, {labels} | {way} | {own.mean():.3f} | {values[0].mean():.3f} | {gained} | {against} |")


def _difference(gained: np.ndarray) -> str:
    half = stats.t.ppf(0.975, len(gained) - 1) * gained.std(ddof=1) / np.sqrt(len(gained))
    return f"{gained.mean():+.3f} ({gained.mean() - half:+.3f} to {gained.mean() + half:+.3f})"


if __name__ == "__main__":
    main()
