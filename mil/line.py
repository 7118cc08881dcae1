"""The whole line for one table: its four commands one after the other, each in its folder of the study.

Each stage is the command that a user would type, with its settings from a section of the line's own; so a study may be
taken up or inspected by these commands at any time, and runs again where it stopped. A slide that fails is left out of
what follows. A stage that could not end with all of its slides ends the line. Where embedding takes what tiling leaves
free, extract-features runs over the slides that are tiled while others still are; afterwards it runs over all.
"""

import csv
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from features.config import FeatureConfig
from features.embed.device import pick_devices
from mil.heads.registry import judges_patches
from mil.maps.config import HeatmapConfig
from mil.training.config import TrainConfig
from tiling.config import TilingConfig
from tiling.jobs.atomic import write_csv, write_text
from tiling.jobs.listener import SILENT, Listener
from tiling.manifest import SlideRow, load_table

FAILURES = "failures.csv"  # stage, slide_id, reason: of each slide the first stage that it failed in
_ENDED = {"done", "skipped", "empty", "failed"}  # ways of a slide to end that running again would not change
_LOOK_S = 5.0  # for slides that are tiled by now


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

    @property
    def flows(self) -> bool:
        """Whether slides are embedded while others are tiled: with a GPU or a cluster, since on the cores that tile it
        would only take turns, and where nothing is made anew or fitted to all slides first. Raises RequestError.
        """
        extract = self.extract
        if self.tile.overwrite or extract.overwrite or extract.adapt_bn or extract.calibrates:
            return False
        return bool(self.tile.scheduler or extract.scheduler) or pick_devices(extract.device)[0].type == "cuda"


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
        run = _run
        if stage.name == "tile" and config.flows:
            run = functools.partial(_run, meanwhile=_Embedding(rows, config.extract, out, listener))
        codes.append(run(stage, out / "line" / f"{stage.name}.yaml", getattr(config, stage.name), listener))
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


def _run(
    stage: _Stage, settings: Path, config: object, listener: Listener, meanwhile: Callable[[], None] | None = None
) -> int:
    """Run a console script of this installation, its output shown. Returns its exit code.

    meanwhile: called again and again until it has ended.
    """
    command = _command(stage, settings, config)
    listener.say(f"$ {shlex.join(command)}")
    return _ended(subprocess.Popen([_script(command[0]), *command[1:]]), meanwhile)


def _command(stage: _Stage, settings: Path, config: object) -> list[str]:
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}  # type: ignore[arg-type]
    write_text(settings, yaml.safe_dump(values, sort_keys=False))
    return [*stage.command, "--config", str(settings)]


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _ended(running: subprocess.Popen[bytes], meanwhile: Callable[[], None] | None = None) -> int:
    try:
        while meanwhile and running.poll() is None:
            meanwhile()
            with suppress(subprocess.TimeoutExpired):
                running.wait(_LOOK_S)
        return running.wait()
    except KeyboardInterrupt:
        running.terminate()
        running.wait()
        raise


class _Embedding:
    """Embeds the slides that have been tiled since the last call, each once. What goes wrong the stage itself says."""

    def __init__(self, rows: Sequence[SlideRow], config: FeatureConfig, out: Path, listener: Listener) -> None:
        self._left, self._config, self._listener = list(rows), config, listener
        self._patches, self._features, self._line = (out / name for name in ("patches", "features", "line"))

    def __call__(self) -> None:
        tiled = set(os.listdir(self._patches)) if self._patches.is_dir() else set()
        ready = [row for row in self._left if f"{row.slide_id}.zarr" in tiled]
        self._left = [row for row in self._left if f"{row.slide_id}.zarr" not in tiled]
        if not ready:
            return
        table = self._line / "tiled.csv"
        write_csv(table, [("slide_id", "path"), *((row.slide_id, row.url or row.path) for row in ready)])
        command = ["extract-features", str(self._patches), "--slides", str(table), "--out", str(self._features)]
        command = _command(_Stage("extract", command, self._features), self._line / "extract.yaml", self._config)
        with (self._line / "tiled.log").open("ab") as log:
            code = _ended(subprocess.Popen([_script(command[0]), *command[1:]], stdout=log, stderr=log))
        how = "embedded" if code == 0 else "looked at, not all embedded"
        self._listener.say(f"extract: {len(ready)} slides that are tiled were {how} meanwhile ({log.name})")


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
