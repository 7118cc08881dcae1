"""How often diagnose-cohort says what is planted in cohorts of 78 slides, and how often what is not there.

`accuracy_diagnosis.py [--cohorts 200] [--case NAME …]` draws so many cohorts for each case (planted_cohorts.py),
a tenth of them where heads are trained, with seeds that no threshold was chosen on, and prints a Markdown table. The
interval of a share is Wilson's. The learning curve over patients, which gives no verdict, is left out. It takes half an
hour of one core.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices; more threads only wait for each other
sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests

import numpy as np
from planted_cohorts import FLIPPED, Plan, inputs_in_memory

from mil.diagnosis.catalogue import Entry
from mil.diagnosis.findings import copied_labels, duplicates, helpful_patients, shortcut, signal, wrong_labels
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.witness import witness_rate

signal.learning_curve = lambda *_: None  # type: ignore[assignment]
SLIDES, FIRST_SEED = 78, 400_000
HARD_AUROC = 0.90  # of averaged features under right labels, at that spread of slides
FIRST = 0.3  # of the slides, by suspicion


@dataclass(frozen=True)
class Answer:
    """said: whether the finding says what the case asks for; figure: what else is told."""

    said: bool
    figure: float = math.nan


def no_signal(inputs: Inputs, plan: Plan) -> Answer:
    return Answer(signal.find(inputs).severity == "fault")


def any_signal(inputs: Inputs, plan: Plan) -> Answer:
    return Answer(signal.find(inputs).severity != "fault")


def site(inputs: Inputs, plan: Plan) -> Answer:
    found = shortcut.find(inputs)
    return Answer(found.severity == "fault" and "site" in found.verdict)


def twice(inputs: Inputs, plan: Plan) -> Answer:
    found = duplicates.find(inputs)
    return Answer(found.severity == "fault" and found.numbers["of them under different patients"]["value"] == 2)


def labels(inputs: Inputs, plan: Plan) -> Answer:
    """figure: share of the wrong labels among the most suspicious slides."""
    found = wrong_labels.find(inputs)
    first = found.evidence["order"][: round(FIRST * SLIDES)]  # type: ignore[index]
    wrong = plan.flipped(inputs.cohort.labels)
    return Answer(found.severity == "look", len(wrong & set(first)) / len(wrong) if wrong else math.nan)


def harm(inputs: Inputs, plan: Plan) -> Answer:
    """figure: share of patients with a wrong label among the eight most harmful."""
    found = helpful_patients.find(inputs)
    named = [row[1] for row in found.details[0].rows]
    return Answer(found.severity == "look", len(plan.flipped(inputs.cohort.labels) & set(named)) / len(named))


def alarm(finding: Entry) -> Callable[[Inputs, Plan], Answer]:
    return lambda inputs, plan: Answer(finding.find(inputs).severity != "fine")


def too_high(inputs: Inputs, plan: Plan) -> Answer:
    """figure: the bound."""
    found = witness_rate(inputs.cohort, 1, parts_of(inputs.folds), inputs.config.bootstrap, plan.seed)
    return Answer(found.at_least > plan.witness, found.at_least)


def gain_of_mil(inputs: Inputs, plan: Plan) -> Answer:
    return Answer(copied_labels.find(inputs).severity == "look")


@dataclass(frozen=True)
class Case:
    cohort: str
    verdict: str
    plan: Callable[..., Plan]  # of a seed
    ask: Callable[[Inputs, Plan], Answer]
    figure: str = ""  # what the answer's figure is
    part: float = 1.0  # of the cohorts that are asked for


HARD = f"classes overlap (AUROC {HARD_AUROC:.1f})"
NOTHING = "labels shuffled"
FEW = partial(Plan, witness=0.02, patches=100, spread=0.3)
AMONG = f"of the wrong labels among the most suspicious {FIRST:.0%}"
CLEAN: tuple[tuple[str, Entry], ...] = (
    ("signal", signal), ("shortcut", shortcut), ("duplicates", duplicates), ("labels", wrong_labels),
    ("influence", helpful_patients),
)  # fmt: skip
CASES = {
    "shuffled": Case(NOTHING, "no signal", partial(Plan, "permuted"), no_signal),
    "larger": Case(
        "features say nothing; tumour slides have four times the patches", "no signal",
        partial(Plan, witness=0.0, larger=4), no_signal,
    ),
    "few": Case("2 of 100 patches of a tumour slide show it", "signal", FEW, any_signal),
    "few-larger": Case("the same with tumour slides twice as large", "signal", partial(FEW, larger=2), any_signal),
    "site": Case("a site goes with the label", "shortcut, named", partial(Plan, "site"), site),
    "twice": Case("two slides under two patients each", "both pairs", partial(Plan, "twice"), twice),
    "flipped": Case(f"one label in {FLIPPED} wrong", "wrong, or atypical", partial(Plan, "flipped"), labels, AMONG),
    "flipped-hard": Case(
        f"the same, {HARD}", "wrong, or atypical", partial(Plan, "flipped", spread=1.0), labels, AMONG
    ),
    "flipped-harm": Case(
        f"one label in {FLIPPED} wrong", "patients do harm", partial(Plan, "flipped"), harm,
        "of the eight most harmful have a wrong label",
    ),
    **{
        f"silent-{share}": Case(
            f"labels right, {share} % of tumour slides show nothing", "wrong, or atypical",
            partial(Plan, silent=share / 100), labels,
        )
        for share in (20, 30, 40)
    },
    **{f"clean-{name}": Case("nothing planted", f"false alarm of {name}", Plan, alarm(of)) for name, of in CLEAN},
    **{
        f"hard-{name}": Case(f"nothing planted, {HARD}", f"false alarm of {name}", partial(Plan, spread=1.0), alarm(of))
        for name, of in CLEAN
    },
    **{
        f"witness-{name}": Case(
            f"{plan.witness:.0%} of {plan.patches} patches differ, by {plan.shift:.1f} deviations", "bound too high",
            partial(Plan, witness=plan.witness, patches=plan.patches, shift=plan.shift), too_high, "bound",
        )
        for name, plan in {
            "0": Plan(witness=0.0), "10": Plan(witness=0.1, patches=100), "50": Plan(witness=0.5),
            "90": Plan(witness=0.9), "90-near": Plan(witness=0.9, shift=1.0),
        }.items()
    },
    "copied-nothing": Case(NOTHING, "MIL beats copied labels", partial(Plan, "permuted"), gain_of_mil, part=0.1),
    "copied-few": Case(
        "2 of 100 patches of a tumour slide show it", "MIL beats copied labels", FEW, gain_of_mil, part=0.1
    ),
}  # fmt: skip


def wilson(found: int, of: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z2 = 1.96**2
    middle, half = (found + z2 / 2) / (of + z2), 1.96 * math.sqrt(found * (of - found) / of + z2 / 4) / (of + z2)
    return middle - half, middle + half


def row(case: Case, answers: Sequence[Answer]) -> str:
    said = sum(answer.said for answer in answers)
    low, high = wilson(said, len(answers))
    more, figures = "", np.array([answer.figure for answer in answers])
    if case.figure:
        more = f"{case.figure}: mean {figures.mean():.2f}, {figures.min():.2f} to {figures.max():.2f}"
    share = f"{said} of {len(answers)} | {said / len(answers):.0%} ({low:.0%}–{high:.0%})"
    return f"| {case.cohort} | {case.verdict} | {share} | {more} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=200, help="a case")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    print("| cohort of 78 slides | verdict | said in | share (95 % interval) | |\n| --- | --- | --- | --- | --- |")
    for number, (name, case) in enumerate(CASES.items()):
        if name in arguments.case:
            began, first = time.process_time(), FIRST_SEED + 1000 * number
            plans = [case.plan(slides=SLIDES, seed=first + i) for i in range(math.ceil(case.part * arguments.cohorts))]
            answers = [case.ask(inputs_in_memory(plan), plan) for plan in plans]
            print(row(case, answers), flush=True)
            print(f"{name}: {(time.process_time() - began) / len(plans):.2f} s a cohort", file=sys.stderr)
