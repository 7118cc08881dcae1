"""The whole line for one table: its four commands one after the other, each in its folder of the study.

Each stage is the command that a user would type, with its settings from a section of the line's own; so a study may be
taken up or inspected by these commands at any time, and runs again where it stopped. A slide that fails is left out of
what follows. A stage that could not end with all of its slides ends the line.
"""

import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from features.config import FeatureConfig
from mil.heads.registry import judges_patches
from mil.maps.config import HeatmapConfig
from mil.training.config import TrainConfig
from tiling.config import TilingConfig
from tiling.jobs.atomic import write_csv, write_text
from tiling.jobs.listener import SILENT, Listener
from tiling.manifest import load_table

FAILURES = "failures.csv"  # stage, slide_id, reason: of each slide the first stage that it failed in
_ENDED = {"done", "skipped", "empty", "failed"}  # ways of a slide to end that running again would not change


@dataclass(frozen=True)
class LineConfig:
    """The settings of the four commands. Raises ValueError for those of an array job, which has no whole cohort."""

    tile: TilingConfig = field(default_factory=TilingConfig)
    extract: FeatureConfig = field(default_factory=FeatureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    heatmaps: HeatmapConfig = field(default_factory=HeatmapConfig)

    def __post_init__(self) -> None:
        if self.tile.part or self.extract.part:
            raise ValueError("part is for array jobs of tile-slides and extract-features themselves, before mil-line")


@dataclass(frozen=True)
class _Stage:
    name: str  # of its section
    command: Sequence[str]
    out: Path


def run_line(table: Path, target: str, config: LineConfig, out: Path, listener: Listener = SILENT) -> int:
    """Run or resume the line into `out`. Returns the largest exit code of its stages. Raises RequestError.

    target: column of the table that holds the label.
    """
    rows = load_table(table, needs_path=True, target=target, urls=True, empty_labels=config.train.bag == "patient")
    codes, begun = [0], []
    stages = _stages(table, target, config, out)
    if any(row.url for row in rows):
        listener.say("heatmaps are drawn from local files, and the table names URLs: left out")
        stages.pop()
    elif not judges_patches(config.train.head):
        listener.say(f"the head {config.train.head} says nothing of a single patch: no heatmaps")
        stages.pop()
    for stage in stages:
        begun.append(stage)
        codes.append(_run(stage, out / "line" / f"{stage.name}.yaml", getattr(config, stage.name), listener))
        unfinished = _unfinished(stage.out)
        if codes[-1] > 1 or unfinished:
            listener.warn(f"stopped at {stage.name}{': ' + unfinished if unfinished else ''}")
            codes.append(1)
            break
    for name, slide_id, reason in _report(begun, out):
        listener.warn(f"{name}: {slide_id} failed: {reason}")
    return max(codes)


def _stages(table: Path, target: str, config: LineConfig, out: Path) -> list[_Stage]:
    patches, features, run, maps = (out / name for name in ("patches", "features", "run", "heatmaps"))
    slides = str(table)
    commands = {
        "tile": (["tile-slides", slides], patches),
        "extract": (["extract-features", str(patches), "--slides", slides], features),
        "train": (["train-mil", str(features), "--labels", slides, "--target", target], run),
        "heatmaps": (["export-heatmaps", str(run), str(features), "--slides", slides], maps),
    }
    return [_Stage(name, [*command, "--out", str(folder)], folder) for name, (command, folder) in commands.items()]


def _run(stage: _Stage, settings: Path, config: object, listener: Listener) -> int:
    """Run a console script of this installation, its output shown. Returns its exit code."""
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}  # type: ignore[arg-type]
    write_text(settings, yaml.safe_dump(values, sort_keys=False))
    command = [*stage.command, "--config", str(settings)]
    listener.say(f"$ {shlex.join(command)}")
    running = subprocess.Popen([str(Path(sys.executable).parent / command[0]), *command[1:]])
    try:
        return running.wait()
    except KeyboardInterrupt:
        running.terminate()
        running.wait()
        raise


def _unfinished(out: Path) -> str:
    """Which of the slides of a stage did not end; empty where all did, or the stage counts none."""
    try:
        counts: Mapping[str, int] = json.loads((out / "summary.json").read_text(encoding="utf-8"))["counts"]
    except FileNotFoundError:
        return ""
    return ", ".join(f"{count} slides {status}" for status, count in counts.items() if status not in _ENDED)


def _report(stages: Sequence[_Stage], out: Path) -> list[tuple[str, str, str]]:
    """Write which slides failed, each at the first stage that it failed in, and return the rows."""
    failed: dict[str, tuple[str, str, str]] = {}
    for stage in stages:
        if (file := stage.out / "failures.csv").exists():
            for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
                failed.setdefault(row["slide_id"], (stage.name, row["slide_id"], row["reason"]))
    if failed:
        write_csv(out / FAILURES, [("stage", "slide_id", "reason"), *failed.values()])
    else:
        (out / FAILURES).unlink(missing_ok=True)
    return list(failed.values())
