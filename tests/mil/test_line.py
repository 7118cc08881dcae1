"""The line runs its commands in their folders, resumes, and says of each failed slide at which stage it failed."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from features.config import FeatureConfig
from mil import line
from mil.line import LineConfig, run_line
from tiling.config import TilingConfig
from tiling.jobs.command import config_from, parser_for
from tiling.jobs.errors import RequestError
from tiling.jobs.listener import Listener
from tiling.phantom.phantom import PhantomSpec, write_phantom

SETTINGS = """
tile: {mpp: 1.0, patch_px: 128}
extract: {encoder: mobilenet-v3-small, weights: random, device: cpu}
train: {folds: 2, inner_folds: 0, epochs: 1, device: cpu}
heatmaps: {formats: geojson}
"""


class Notes(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say


@pytest.fixture
def table(tmp_path) -> Path:
    """Eight slides of eight patients, and one that cannot be opened."""
    lines = ["slide_id,path,patient_id,tumour"]
    for number in range(8):
        spec = PhantomSpec(1504 + 64 * number, 1504, seed=1, tumour=False)  # one seed: its stamps are drawn once
        write_phantom(spec, tmp_path / f"s{number}.svs")
        lines.append(f"s{number},s{number}.svs,p{number},{'yes' if number % 2 else 'no'}")
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    path = tmp_path / "slides.csv"
    path.write_text("\n".join([*lines, "bad,bad.svs,p9,no"]) + "\n")
    return path


class _Here:
    """Stands for Popen: the commands run in this process, which has loaded what they need."""

    def __init__(self, command) -> None:
        self._command = command

    def __call__(self, words: list[str]) -> "_Here":
        self._code = self._command(Path(words[0]).name, *words[1:]).returncode
        return self

    def wait(self) -> int:
        return self._code


@pytest.mark.long
def test_one_command_does_all_and_names_stage_and_slide(process, command, table, tmp_path, monkeypatch):
    (tmp_path / "line.yaml").write_text(SETTINGS)
    given = ("mil-line", table, "--target", "tumour", "--out", tmp_path / "study", "--config", tmp_path / "line.yaml")
    done = process(*given)
    assert done.returncode == 1, done.stderr
    study = tmp_path / "study"
    failed = pd.read_csv(study / "failures.csv")
    assert failed[["stage", "slide_id"]].values.tolist() == [["tile", "bad"]]
    assert "mil-line: tile: bad failed: " in done.stderr
    assert len(list((study / "patches").glob("*.zarr"))) == len(list((study / "features").glob("*.h5"))) == 8
    assert len(pd.read_csv(study / "run/predictions.csv")) == 8
    assert len(list((study / "heatmaps").glob("s*.geojson"))) == 8
    before = (study / "run/predictions.csv").stat().st_mtime_ns
    monkeypatch.setattr(line.subprocess, "Popen", _Here(command))
    assert command(*given).returncode == 1
    assert (study / "run/predictions.csv").stat().st_mtime_ns == before
    assert json.loads((study / "patches/summary.json").read_text())["counts"] == {"failed": 1, "skipped": 8}


@pytest.fixture
def plain(tmp_path) -> Path:
    (tmp_path / "a.svs").write_bytes(b"never opened")
    path = tmp_path / "slides.csv"
    path.write_text("path,tumour\na.svs,yes\n")
    return path


def faked(monkeypatch, summaries: dict[str, dict[str, int]], codes: dict[str, int]) -> list[str]:
    """Stages that only write what is given here; returns their names as they run."""
    ran = []

    def run(stage, settings, config, listener):
        ran.append(stage.name)
        stage.out.mkdir(parents=True, exist_ok=True)
        (stage.out / "summary.json").write_text(json.dumps({"counts": summaries.get(stage.name, {"done": 9})}))
        if codes.get(stage.name) == 1:
            (stage.out / "failures.csv").write_text(f"slide_id,reason\nbad,at {stage.name}\n")
        return codes.get(stage.name, 0)

    monkeypatch.setattr(line, "_run", run)
    return ran


@pytest.mark.parametrize("status", ["not done", "locked"])
def test_a_stage_whose_slides_did_not_all_end_ends_the_line(monkeypatch, plain, tmp_path, status):
    ran = faked(monkeypatch, {"extract": {"done": 3, status: 6}}, {})
    notes = Notes()
    assert run_line(plain, "tumour", LineConfig(), tmp_path / "study", notes) == 1
    assert ran == ["tile", "extract"] and f"stopped at extract: 6 slides {status}" in notes.said


def test_a_refused_stage_ends_the_line_with_its_code(monkeypatch, plain, tmp_path):
    ran = faked(monkeypatch, {}, {"train": 2})
    assert run_line(plain, "tumour", LineConfig(), tmp_path / "study", Notes()) == 2 and ran == [
        "tile",
        "extract",
        "train",
    ]


def test_a_slide_is_named_at_the_first_stage_that_it_failed_in(monkeypatch, plain, tmp_path):
    ran = faked(monkeypatch, {}, {"tile": 1, "extract": 1, "heatmaps": 1})
    notes = Notes()
    assert run_line(plain, "tumour", LineConfig(), tmp_path / "study", notes) == 1 and len(ran) == 4
    assert notes.said == ["tile: bad failed: at tile"]


def test_maps_are_left_out_where_slides_are_urls(monkeypatch, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,tumour\nhttps://host/a.svs,yes\n")
    ran, notes = faked(monkeypatch, {}, {}), Notes()
    assert run_line(table, "tumour", LineConfig(), tmp_path / "study", notes) == 0
    assert ran == ["tile", "extract", "train"] and "URLs: left out" in notes.said[0]


TILE = """
while not (out / "a.zarr").exists() or not (out.parent / "features/a.h5").exists():
    (out / "a.zarr").mkdir(parents=True, exist_ok=True)
    time.sleep(0.05)
(out / "b.zarr").mkdir()
"""
EXTRACT = """
table = next(csv.DictReader(open(file)) for flag, file in zip(sys.argv, sys.argv[1:]) if flag == "--slides")
out.mkdir(exist_ok=True)
for row in table:
    (out / f"{row['slide_id']}.h5").open("a").write(row["path"] + ";")
"""


@pytest.mark.parametrize(
    ("extract", "flows"),
    [
        ({"scheduler": "tcp://x:1"}, True),
        ({"device": "cpu"}, False),
        ({"scheduler": "tcp://x:1", "adapt_bn": True}, False),
        ({"scheduler": "tcp://x:1", "overwrite": True}, False),
    ],
)
def test_with_a_gpu_or_a_cluster_slides_are_embedded_while_others_are_tiled(monkeypatch, tmp_path, extract, flows):
    """The first slide is; where nothing is fitted to all slides or made anew. Then all slides are looked at."""
    config = LineConfig(extract=FeatureConfig(**extract))
    assert config.flows == flows
    if not flows:
        return
    scripts = {"tile-slides": TILE, "extract-features": EXTRACT, "train-mil": "", "export-heatmaps": ""}
    begin = f"#!{sys.executable}\nimport csv, sys, time\nfrom pathlib import Path\n"
    for name, text in scripts.items():
        (tmp_path / name).write_text(f'{begin}out = Path(sys.argv[sys.argv.index("--out") + 1])\n{text}')
        (tmp_path / name).chmod(0o700)
    monkeypatch.setattr(line, "_script", lambda name: str(tmp_path / name))
    monkeypatch.setattr(line, "_LOOK_S", 0.05)
    for name in "ab":
        (tmp_path / f"{name}.svs").touch()
    (tmp_path / "t.csv").write_text("slide_id,path,tumour\na,a.svs,yes\nb,b.svs,no\n")
    notes = Notes()
    assert run_line(tmp_path / "t.csv", "tumour", config, tmp_path / "study", notes) == 0
    assert (tmp_path / "study/features/a.h5").read_text() == f"{tmp_path}/a.svs;a.svs;"
    assert (tmp_path / "study/features/b.h5").read_text() in ("b.svs;", f"{tmp_path}/b.svs;b.svs;")
    assert any(text.startswith("extract: 1 slides that are tiled were embedded meanwhile") for text in notes.said)


def test_sections_are_checked_before_anything_starts(command, plain, tmp_path):
    (tmp_path / "line.yaml").write_text("tile: {mpp: 99}\n")
    given = ("mil-line", plain, "--target", "tumour", "--out", tmp_path / "study")
    refused = command(*given, "--config", tmp_path / "line.yaml")
    assert refused.returncode == 2 and "--mpp is 99" in refused.stderr
    (tmp_path / "line.yaml").write_text("tile: {patch: 99}\n")
    assert command(*given, "--config", tmp_path / "line.yaml").returncode == 2
    assert not (tmp_path / "study").exists()
    with pytest.raises(ValueError, match="array jobs"):
        LineConfig(tile=TilingConfig(part="1/2"))
    with pytest.raises(RequestError, match="no label column 'grade'"):
        run_line(plain, "grade", LineConfig(), tmp_path / "study")


def test_the_commented_settings_are_the_defaults():
    parser = parser_for(LineConfig, "", "")
    written = parser.parse_args(["--config", str(Path(__file__).parents[2] / "configs/line.yaml")])
    assert config_from(LineConfig, written) == LineConfig()
    assert set(yaml.safe_load((Path(__file__).parents[2] / "configs/line.yaml").read_text())) == set(vars(LineConfig()))
