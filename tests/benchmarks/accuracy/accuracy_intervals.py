"""How often the 95 % intervals of numbers and of survival hold the truth, and the ranges of single numbers their share.

The scores are given, those of one fixed model, as intervals take models as they are: a patient has a trait, each of his
two slides shows it with an error of its own, and his outcome follows from it. The truth is the figure of 24,000
patients. Ranges are set on as many slides of others as the cohort has, and judged on those 24,000.

    python tests/benchmarks/accuracy/accuracy_intervals.py [--cohorts 200] [--patients 60]
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mil.metrics.bootstrap import Bootstrap
from mil.metrics.regression import evaluate_numbers
from mil.metrics.survival import evaluate_survival, label_of, survival_column
from mil.tasks.regression import SHARE, conformal_quantile

SLIDES, PART, PARTS = 2, 2000, 12
TIMES = (0.3, 0.8, 1.5)
FIGURES = {  # that have a truth of their own in each kind
    "regression": ("mae", "rmse", "r2", "pearson", "spearman"),
    "survival": ("c_index", "c_uno", "auc", "ibs", "ipa", "hazard_ratio"),
}


def numbers(patients: int, rng: np.random.Generator) -> pd.DataFrame:
    trait, who = rng.normal(size=patients), np.repeat(np.arange(patients), SLIDES)
    said = trait[who] + 0.5 * rng.normal(size=len(who))
    truth = (trait + 0.7 * rng.standard_t(5, size=patients))[who]
    return pd.DataFrame({"patient_id": who.astype(str), "label": truth, "value": said, "low": np.nan, "high": np.nan})


def survival(patients: int, rng: np.random.Generator) -> pd.DataFrame:
    trait, who = rng.normal(size=patients), np.repeat(np.arange(patients), SLIDES)
    event, censored = rng.exponential(np.exp(-trait)), rng.exponential(2.0, size=patients)
    labels = [label_of(repr(min(e, c)), e <= c) for e, c in zip(event.tolist(), censored.tolist(), strict=True)]
    risk = trait[who] + 0.7 * rng.normal(size=len(who))
    said = {survival_column(time): np.exp(-time * np.exp(0.7 * risk)) for time in TIMES}
    return pd.DataFrame({"patient_id": who.astype(str), "label": np.array(labels)[who], "risk": risk, **said})


def evaluate(kind: str, table: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, dict[str, float]]:
    found = evaluate_numbers(table, bootstrap) if kind == "regression" else evaluate_survival(table, TIMES, bootstrap)
    return {name: found[name] for name in FIGURES[kind]}


def held(kind: str, draw: Callable[[int, np.random.Generator], pd.DataFrame], told: argparse.Namespace) -> None:
    parts = [draw(PART, np.random.default_rng((1, seed))) for seed in range(PARTS)]
    each = [evaluate(kind, part, Bootstrap(1)) for part in parts]
    truth = {name: np.mean([of[name]["value"] for of in each]) for name in FIGURES[kind]}
    cohorts = [draw(told.patients, np.random.default_rng((2, seed))) for seed in range(told.cohorts)]
    found = [evaluate(kind, table, Bootstrap(1000, seed)) for seed, table in enumerate(cohorts)]
    for name, value in truth.items():
        count = sum(holds(of[name], value) for of in found)
        print(f"| {kind} | {name} | {value:.3f} | {share(count, told.cohorts)} |", flush=True)
    if kind == "regression":
        ranges(cohorts, pd.concat(parts))


def holds(interval: Mapping[str, float], value: float) -> bool:
    return interval["low"] <= value <= interval["high"]


def share(count: int, of: int) -> str:
    low, high = binomtest(count, of).proportion_ci(method="wilson")
    return f"{count / of:.1%} ({low:.1%}–{high:.1%})"


def ranges(cohorts: list[pd.DataFrame], others: pd.DataFrame) -> None:
    errors = (others["label"] - others["value"]).abs().to_numpy()
    parts = []
    for table in cohorts:
        width = conformal_quantile((table["label"] - table["value"]).abs().to_numpy(), SHARE)
        assert width is not None
        parts.append(float((errors <= width).mean()))
    half = 1.96 * np.std(parts, ddof=1) / np.sqrt(len(parts))
    print(f"\nof new slides, ranges that should hold {SHARE:.0%} hold {np.mean(parts):.1%} ± {half:.1%} on average")
    print(f"over cohorts, {min(parts):.1%} to {max(parts):.1%} in single ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=200)
    parser.add_argument("--patients", type=int, default=60)
    told = parser.parse_args()
    print("| kind | figure | truth | intervals that hold it (95 %) |\n| --- | --- | --- | --- |")
    held("survival", survival, told)
    held("regression", numbers, told)


if __name__ == "__main__":
    main()
