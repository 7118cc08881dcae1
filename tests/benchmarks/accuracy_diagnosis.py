"""How often diagnose-cohort finds what is planted in cohorts of 78 slides, and how often it sees what is not there.

`accuracy_diagnosis.py [--cohorts 40] [--case NAME …]` draws so many cohorts for each case (tests/planted_cohorts.py),
with seeds that no threshold was chosen on, and prints a Markdown table. The interval of a share is Wilson's. The heads
that copied labels are held against are left out: they take most of the time of the command and are measured elsewhere.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices; more threads only wait for each other
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # the packages before the folders of their tests

import numpy as np
from planted_cohorts import FLIPPED, Plan, planted_inputs

from mil.diagnosis.findings import duplicates, helpful_slides, shortcut, signal, wrong_labels
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.witness import witness_rate

SLIDES, FIRST_SEED = 78, 20_000
HARD_AUROC = 0.90  # of averaged features under right labels, at that spread of slides
FIRST = 0.3  # of the slides, by suspicion


@dataclass(frozen=True)
class Answer:
    """found: whether the finding says what is planted (or, of a clean cohort, nothing); figure: what else is told."""

    found: bool
    figure: float = math.nan


def no_signal(inputs: Inputs, plan: Plan) -> Answer:
    return Answer(signal.find(inputs).severity == "fault")


def site(inputs: Inputs, plan: Plan) -> Answer:
    found = shortcut.find(inputs)
    return Answer(found.severity == "fault" and "site" in found.verdict)


def twice(inputs: Inputs, plan: Plan) -> Answer:
    found = duplicates.find(inputs)
    return Answer(found.severity == "fault" and found.numbers["of them under different patients"]["value"] == 2)


def flipped(inputs: Inputs, plan: Plan) -> Answer:
    """figure: share of the wrong labels among the most suspicious slides."""
    found = wrong_labels.find(inputs)
    first = found.evidence["order"][: round(FIRST * SLIDES)]  # type: ignore[index]
    wrong = plan.flipped(inputs.cohort.labels)
    return Answer(found.severity == "look", len(wrong & set(first)) / len(wrong))


def clean(inputs: Inputs, plan: Plan) -> Answer:
    made = [module.find(inputs) for module in (duplicates, signal, shortcut, wrong_labels, helpful_slides)]
    alarms = [finding.key for finding in made if finding.severity != "fine"]
    if alarms:
        print(f"seed {plan.seed}, clean: {', '.join(alarms)}", file=sys.stderr)
    return Answer(not alarms)


def witnesses(inputs: Inputs, plan: Plan) -> Answer:
    """figure: width of the interval."""
    rate = witness_rate(inputs.cohort, 1, parts_of(inputs.folds), inputs.config.bootstrap, plan.seed).rate
    low, high = rate["low"] or 0.0, rate["high"] or 0.0
    return Answer(low <= plan.witness <= high, high - low)


@dataclass(frozen=True)
class Case:
    said: str
    plan: Callable[..., Plan]  # of a seed
    ask: Callable[[Inputs, Plan], Answer]
    figure: str = ""  # what the answer's figure is

    def run(self, seed: int) -> Answer:
        plan = self.plan(slides=SLIDES, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            return self.ask(planted_inputs(Path(folder), plan), plan)


CASES = {
    "shuffled": Case("shuffled labels: no signal found", partial(Plan, "permuted"), no_signal),
    "site": Case("site goes with the label: found", partial(Plan, "site"), site),
    "twice": Case("two slides under two patients each: both pairs found", partial(Plan, "twice"), twice),
    "flipped": Case(
        f"one label in {FLIPPED} wrong: found", partial(Plan, "flipped"), flipped,
        f"of the wrong labels among the most suspicious {FIRST:.0%}",
    ),
    "flipped-hard": Case(
        f"the same where the classes overlap (AUROC {HARD_AUROC})", partial(Plan, "flipped", spread=1.0), flipped,
        f"of the wrong labels among the most suspicious {FIRST:.0%}",
    ),
    "clean": Case("nothing planted: no alarm of five findings", Plan, clean),
    "clean-hard": Case(
        f"the same where the classes overlap (AUROC {HARD_AUROC})", partial(Plan, spread=1.0), clean,
    ),
    "witness-50": Case(
        "witness rate 0.5, 30 patches a slide: inside its 95 % interval", partial(Plan, witness=0.5), witnesses,
        "width of the interval",
    ),
    "witness-10": Case(
        "witness rate 0.1, 100 patches a slide: inside its 95 % interval",
        partial(Plan, witness=0.1, patches=100), witnesses, "width of the interval",
    ),
}  # fmt: skip


def wilson(found: int, of: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z2 = 1.96**2
    middle, half = (found + z2 / 2) / (of + z2), 1.96 * math.sqrt(found * (of - found) / of + z2 / 4) / (of + z2)
    return middle - half, middle + half


def row(case: Case, answers: Sequence[Answer], seconds: float) -> str:
    found = sum(answer.found for answer in answers)
    low, high = wilson(found, len(answers))
    more, figures = "", np.array([answer.figure for answer in answers])
    if case.figure:
        more = f"{case.figure}: mean {figures.mean():.2f}, {figures.min():.2f} to {figures.max():.2f}"
    share = f"{found} of {len(answers)} | {found / len(answers):.0%} ({low:.0%}–{high:.0%})"
    return f"| {case.said} | {share} | {more} | {seconds / len(answers):.1f} s |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=40, help="a case")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    print("| cohort of 78 slides | found | share (95 % interval) | | a cohort |\n| --- | --- | --- | --- | --- |")
    for number, name in enumerate(CASES):
        if name in arguments.case:
            began = time.perf_counter()
            seeds = range(FIRST_SEED + 1000 * number, FIRST_SEED + 1000 * number + arguments.cohorts)
            answers = [CASES[name].run(seed) for seed in seeds]
            print(row(CASES[name], answers, time.perf_counter() - began), flush=True)
