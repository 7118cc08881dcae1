"""The demo: a phantom cohort, the four commands exactly as a user would type them, and what came of it."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mil.demo.cohort import NEGATIVE, POSITIVE, make_cohort
from mil.demo.config import DemoConfig
from mil.maps.lesions import LesionAgreement, lesion_agreement
from mil.metrics.difference import Difference, auroc_difference
from mil.pages import words
from mil.run.tables import read_metrics, read_predictions
from tiling.jobs.atomic import write_json
from tiling.jobs.terminal import Terminal, exit_code
from tiling.manifest import load_table

HEADS = ("patch-label-copy", "mean", "gated-abmil")
SURVIVAL = "run-survival"
PATCH_PX, MPP = 256, 0.5


def run_demo(config: DemoConfig, out: Path) -> int:
    """Make, tile, embed, train and draw; print the result. Returns the exit code of the first failing step."""
    start = time.monotonic()
    _say(f"Slides with one label each: a tumour covers at most {config.lesion_fraction:.0%} of the tissue.")
    table, outcomes = make_cohort(config, out, Terminal("make slides"))
    code = exit_code(outcomes)
    for command in _commands(config, out, table) if code == 0 else []:
        code = _run(command)
        if code:
            return code
    if code == 0:
        _report(out, table, time.monotonic() - start)
    return code


def _commands(config: DemoConfig, out: Path, table: Path) -> list[list[str]]:
    patches, features = str(out / "patches"), str(out / "features")
    tile = ["tile-slides", str(table), "--out", patches, "--mpp", str(MPP), "--patch-px", str(PATCH_PX)]
    extract = ["extract-features", patches, "--out", features, "--encoder", config.encoder]
    train = ["train-mil", features, "--labels", str(table), "--folds", str(config.folds), "--seed", str(config.seed)]
    classify = [*train, "--target", "tumour", "--positive", POSITIVE]
    survive = [*train, "--task", "survival", "--time", "months", "--event", "died"]
    draw = ["export-heatmaps", str(out / "run-gated-abmil"), features, "--slides", str(table)]
    return [
        [*tile, "--workers", str(config.workers)],
        extract,
        *([*classify, "--head", head, "--out", str(out / f"run-{head}")] for head in HEADS),
        [*survive, "--inner-folds", "0", "--out", str(out / SURVIVAL)],  # one model a fold takes a fifth of the time
        [*draw, "--out", str(out / "heatmaps")],
    ]


def _run(command: list[str]) -> int:
    """Run a console script of this installation, its output shown."""
    _say(f"$ {shlex.join(command)}")
    return subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]]).returncode


def _say(text: str) -> None:
    _print(f"\n[bold]{text}[/bold]")


def _print(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True)  # commands and sentences stay whole for copy and paste


def _report(out: Path, table: Path, seconds: float) -> None:
    metrics = {head: read_metrics(out / f"run-{head}") for head in HEADS}
    predictions = {head: read_predictions(out / f"run-{head}") for head in HEADS}
    against = {
        head: auroc_difference(predictions["gated-abmil"], predictions[head], (NEGATIVE, POSITIVE), 1)
        for head in ("patch-label-copy", "mean")
    }
    agreement = lesion_agreement(out / "run-gated-abmil", load_table(table, needs_path=True))
    counts = metrics["gated-abmil"]["counts"]
    _say(f"{counts['slides']} slides of {counts['patients']} patients, out of fold, 95 % intervals over patients")
    _print_table(metrics)
    survival = read_metrics(out / SURVIVAL)
    _print_story(metrics, against, agreement)
    _print_survival(survival)
    _print(
        f"\nHeatmaps: {out / 'heatmaps'}/<slide_id>.png, and .geojson for QuPath. "
        f"Slides: {out / 'slides'}. Runs: {out}/run-*.\nThis took {seconds / 60:.1f} minutes."
    )
    write_json(
        out / "summary.json",
        {
            "metrics": metrics,
            "survival": survival,
            "gated_abmil_minus": {head: vars(difference) for head, difference in against.items()},
            "lesions": vars(agreement),
        },
    )


def _print_story(metrics: dict[str, Any], against: dict[str, Difference], agreement: LesionAgreement) -> None:
    copied = metrics["patch-label-copy"]["patch"]["accuracy"]["value"]
    share = agreement.lesion_patches / max(1, agreement.patches)
    difference = against["patch-label-copy"]
    lines = [
        f"Copying the slide's label to each patch gives a patch accuracy of {copied:.0%}. It cannot be much better:",
        f"in a tumour slide {share:.1%} of the patches show tumour, the other {1 - share:.1%} carry a wrong label.",
        f"Attention learns which patches decide. Its slide AUROC is {difference.value:+.2f} against copied labels "
        f"({words.low_to_high(vars(difference), 2)}, p = {difference.p:.3f}).",
        f"Nobody told it where the tumour is. Its patches against the drawn lesions, {agreement.slides} slides: "
        f"patch AUROC {words.interval(agreement.attention, 2, '–')} by attention, "
        f"{words.interval(agreement.shown, 2, '–')} by what a patch adds to the decision, which heatmaps show.",
    ]
    _print("\n".join(lines))


def _print_survival(metrics: dict[str, Any]) -> None:
    slide, patient = metrics["slide"]["c_index"], metrics["patient"]["c_index"]
    plain = metrics["against_mean"]["c_index"]
    _print(
        "Of months to an event, whose hazard grows with the lesions' area, it reaches a C-index of "
        f"{words.interval(patient, 2, '–')} by patient and {words.interval(slide, 2, '–')} by slide, Cox regression on "
        f"mean features {words.interval(plain, 2, '–')} by slide; 0.5 is guessing."
    )


def _print_table(metrics: dict[str, Any]) -> None:
    table = Table()
    for column in ("--head", "patch accuracy", "slide AUROC", "balanced accuracy"):
        table.add_column(column, justify="left" if column == "--head" else "center", no_wrap=True)
    for head in HEADS:
        slide = metrics[head]["slide"]
        patch = metrics[head].get("patch", {}).get("accuracy")
        row = [words.interval(slide[name], 2, "–") for name in ("auroc", "balanced_accuracy")]
        table.add_row(head, words.interval(patch, 2, "–"), *row)
    Console().print(table)
