"""Speed of training against the plain loop (one slide a step, float32, one model after another), in one process.

Small bags: all 10 × 5 models of MUSK1. Large bags: one model on slides of 500 to 5,000 patches × 1,024, in two
threads; and four such models side by side against one after another. Medians of interleaved runs. Then the accuracy
of the default settings, but without a validation part (`val_fraction` 0), on MUSK1 and Fox in the protocol of Ilse et
al. 2018: 10 folds, 5 repeats, all nine tenths trained on to the last epoch, threshold 0.5, interval from a bootstrap
over bags. `--quick` leaves out the accuracy.

`--survival [PATCHES]`: only how much longer an epoch takes that learns times to an event than one that learns two
classes, on the same 500 slides of 1,000 (or so many) patches × 1,024, in pairs of runs.
"""

import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from mil.cohort.cohort import Cohort
from mil.cohort.splits import Fold, make_folds
from mil.run.ensemble import load_head, predict_slide
from mil.tasks.survival import Survival
from mil.training.config import TrainConfig
from mil.training.plan import Plan, plan_training
from mil.training.trainer import train_folds, train_groups

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import cohort_of, load_bags
from real_data import DATA

CPU = torch.device("cpu")
RUNS = 3
LARGE_SLIDES = 40


class PlainAttention(nn.Module):
    """Gated attention as it is usually written: one bag (N, D), standardised before."""

    def __init__(self, dim: int, config: TrainConfig) -> None:
        super().__init__()
        drop = nn.Dropout(config.dropout)
        self.embed = nn.Sequential(drop, nn.Linear(dim, config.embed_dim), nn.ReLU(), drop)
        self.value, self.gate = (nn.Linear(config.embed_dim, config.attention_dim) for _ in range(2))
        self.score = nn.Linear(config.attention_dim, 1)
        self.classify = nn.Linear(config.embed_dim, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        a = torch.softmax(self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h))), dim=0)
        return self.classify((a * h).sum(0, keepdim=True))


def plain_loop(cohort: Cohort, fold: Fold, config: TrainConfig) -> tuple[list[float], float]:
    """Mean training loss of each epoch, and the median seconds of an epoch, preparation left out."""
    patches = torch.cat([cohort.features[i] for i in fold.train]).float()
    mean, std = patches.mean(0), patches.std(0) + 1e-6
    del patches
    bags = [(x.float() - mean) / std for x in cohort.features]
    model = PlainAttention(bags[0].shape[1], config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    labels = torch.from_numpy(cohort.labels)
    rng, losses, ends = np.random.default_rng(0), [], [time.perf_counter()]
    for _ in range(config.epochs):
        model.train()
        total = 0.0
        for i in rng.permutation(fold.train):
            loss = nn.functional.cross_entropy(model(bags[i]), labels[i : i + 1])
            optimiser.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimiser.step()
            total += loss.item()
        losses.append(total / len(fold.train))
        model.eval()
        with torch.no_grad():
            for i in fold.val:
                nn.functional.cross_entropy(model(bags[i]), labels[i : i + 1]).item()
        ends.append(time.perf_counter())
    return losses, float(np.median(np.diff(ends)))


def large_bags() -> Cohort:
    rng = np.random.default_rng(0)
    labels = np.arange(LARGE_SLIDES) % 2
    features = []
    for label in labels:
        x = rng.standard_normal((rng.integers(500, 5001), 1024), dtype=np.float32)
        x[: 20 * label, :32] += 2
        features.append(x.astype(np.float16))
    return cohort_of(labels, features)


def ours(cohort: Cohort, folds: Sequence[Fold], config: TrainConfig) -> tuple[list[float], float]:
    """The same of the first fold and of all folds together, from one epoch's end to the next."""
    plan = plan_training(cohort, folds, config, CPU)
    ends: list[float] = []

    def on_epoch(fold: Fold, values: Mapping[str, float]) -> None:
        if fold.number == folds[-1].number:
            ends.append(time.perf_counter())

    (group,) = plan.groups
    history = train_folds(cohort, group, config, CPU, on_epoch, plan)[0][1]
    return history["train_loss"].tolist(), float(np.median(np.diff(ends)))


def compare(name: str, cohort: Cohort, folds: Sequence[Fold], config: TrainConfig) -> None:
    runs = [(plain_loop(cohort, folds[0], config), ours(cohort, folds, config)) for _ in range(RUNS)]
    plain = statistics.median(seconds for (_, seconds), _ in runs) * len(folds)
    fast = statistics.median(seconds for _, (_, seconds) in runs)
    precision = "bf16" if plan_training(cohort, folds, config, CPU).bf16 else "fp32"
    print(f"{name}, {precision}: an epoch of all models takes {plain:.2f} s in the plain loop,", end=" ")
    print(f"{fast:.3f} s here, ratio {plain / fast:.1f}; {config.epochs} epochs {config.epochs * fast:.0f} s")
    for who, (losses, _) in zip(("plain", "here"), runs[0], strict=True):
        print(f"  training loss, {who}: {' '.join(f'{loss:.3f}' for loss in losses[:5])} … {losses[-1]:.3f}")


def bench_small() -> None:
    torch.set_num_threads(1)
    cohort, config = load_bags("musk1"), TrainConfig(folds=10, inner_folds=0, repeats=1, epochs=10, patience=1000)
    compare("MUSK1, 10 models", cohort, make_folds(cohort, config.split_plan()), config)


def bench_large() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cohort, config = large_bags(), TrainConfig(epochs=5, batch_slides=1, learning_rate=3e-4, patience=1000)
    rows = np.arange(LARGE_SLIDES)
    fold = Fold(0, 0, 0, train=rows[4:], val=rows[:4], test=rows[:4])
    compare(f"{len(fold.train)} large bags", cohort, [fold], config)
    compare("half of their patches in each epoch", cohort, [fold], replace(config, instance_dropout=0.5))


def bench_side_by_side() -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    cohort, config = large_bags(), TrainConfig(folds=2, inner_folds=2, epochs=6, patience=1000, loss="cross-entropy")
    folds = make_folds(cohort, config.split_plan())
    plan = plan_training(cohort, folds, config, CPU)
    seconds: list[tuple[Plan, list[float]]] = [(replace(plan, at_once=1, threads=cores), []), (plan, [])]
    for _ in range(RUNS):
        for tried, of_plan in seconds:
            start = time.perf_counter()
            for _ in train_groups(cohort, tried.groups, config, CPU, lambda *_: None, tried):
                pass
            of_plan.append(time.perf_counter() - start)
    each, both = (statistics.median(of_plan) for _, of_plan in seconds)
    print(f"4 models of large bags, {cores} threads: one after another {each:.1f} s, {plan.at_once} at a time", end=" ")
    print(f"{both:.1f} s, ratio {each / both:.2f}")


def bench_survival(patches: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    bags = [rng.standard_normal((patches, 1024), dtype=np.float32).astype(np.float16) for _ in range(500)]
    classes = cohort_of(np.arange(len(bags)) % 2, bags)
    rows = np.arange(len(bags))
    fold = Fold(0, 0, 0, train=rows[100:], val=rows[:100], test=rows[:100])
    followed = np.stack([rng.exponential(10, len(bags)), rng.integers(0, 2, len(bags))], axis=1)
    times = replace(classes, task=Survival("months", "died", (5.0, 10.0)), targets=followed)
    config = TrainConfig(epochs=3, patience=1000)
    runs = [(ours(classes, [fold], config)[1], ours(times, [fold], config)[1]) for _ in range(RUNS)]
    ratios = [seconds / of_classes for of_classes, seconds in runs]
    print(
        f"500 slides of {patches} patches, epochs of two classes and of times:",
        *(f"{a:.1f}/{b:.1f} s" for a, b in runs),
    )
    print(f"ratio, median of {RUNS} pairs: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def bench_accuracy(name: str) -> None:
    torch.set_num_threads(1)
    cohort, config = load_bags(name), TrainConfig(folds=10, repeats=5, val_fraction=0.0)
    folds = [replace(fold, val=fold.val[:0]) for fold in make_folds(cohort, config.split_plan())]
    plan = plan_training(cohort, folds, config, CPU)
    start = time.perf_counter()
    trained = [both for group in plan.groups for both in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    seconds = time.perf_counter() - start
    correct = np.zeros((config.repeats, len(cohort.labels)))
    for fold, (checkpoint, _) in zip(folds, trained, strict=True):
        head = load_head(checkpoint, CPU)
        for i in fold.test:
            decided = predict_slide(head, cohort.features[i], CPU, cohort.task, {}).answer[1] >= 0.5
            correct[fold.repeat, i] = decided == cohort.labels[i]
    of_bag = correct.mean(axis=0)
    draws = np.random.default_rng(0).choice(of_bag, (2000, len(of_bag))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    print(f"{name}, {config.head}: bag accuracy {of_bag.mean():.3f} ({low:.3f}–{high:.3f}), {seconds:.0f} s")


if __name__ == "__main__":
    if "--survival" in sys.argv:
        bench_survival(int(next(iter(sys.argv[sys.argv.index("--survival") + 1 :]), 1000)))
        sys.exit()
    if DATA.is_dir():
        bench_small()
    bench_large()
    bench_side_by_side()
    if DATA.is_dir() and "--quick" not in sys.argv:
        for data_set in ("musk1", "fox"):
            bench_accuracy(data_set)
