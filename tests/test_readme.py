"""What README.md and .docs/*.md promise is there: their links, commands, flags, make targets and scripts."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest

from features import extract
from tiling import tile
from tiling.phantom.phantom import PhantomSpec, write_phantom

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".docs").glob("*.md"))]
COMMANDS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OTHERS = {"pip", "ssh", "dask", "nextflow", "podman", "sbatch", "snakemake"}  # programs whose flags are not ours


def code_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, without comments and with what a backslash joins; then code inside of sentences."""
    for line in "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines():
        yield line.split(" # ")[0].strip()
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text)))


def unknown_flags(text: str, told: dict[str, str]) -> set[str]:
    """Flags with the call in which they stand, or alone, that its parser, or for a flag alone no parser, has.

    told: what a command's help says, or a script itself.
    """
    found = set()
    for line in code_lines(text):
        words = line.removeprefix("python ").split()
        if not words or words[0] in OTHERS:
            continue
        parser = told.get(words[0], " ".join(told[name] for name in COMMANDS))
        found |= {f"{words[0]} {flag}" for flag in set(FLAG.findall(line)) - set(FLAG.findall(parser))}
    return found


@pytest.fixture(scope="module")
def told(command: Callable[..., CompletedProcess[str]]) -> dict[str, str]:
    scripts = (ROOT / "tests/benchmarks").glob("*/*.py")
    return {name: command(name, "--help").stdout for name in COMMANDS} | {
        str(script.relative_to(ROOT)): script.read_text() for script in scripts
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_are_those_of_the_parsers(page: Path, told: dict[str, str]) -> None:
    assert not unknown_flags(page.read_text(), told)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_scripts_and_targets_are_there(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in code_lines(text) if line.startswith("make ")}
    assert not [script for script in re.findall(r"\btests/[\w/]+\.py", text) if not (ROOT / script).exists()]
    assert targets <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def test_every_command_is_told() -> None:
    first_words = {line.split(" ")[0] for page in PAGES for line in code_lines(page.read_text())}
    assert set(COMMANDS) <= first_words


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.long
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch) -> None:
    """On phantoms of ten patients, as it stands there."""
    [code] = re.findall(r"<!-- api -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 12
    monkeypatch.chdir(tmp_path)
    rows = [(f"S{i}", f"s{i}.svs", f"P{i}", ("normal", "tumour")[i % 2]) for i in range(10)]
    for i, (_, path, _, label) in enumerate([*rows, ("new", "new.svs", "", "normal")]):
        spec = PhantomSpec(1600, 1536 + 64 * i, seed=1, tumour=label == "tumour", lesion_fraction=0.05)
        write_phantom(spec, tmp_path / path)
    columns = ["slide_id", "path", "patient_id", "diagnosis"]
    pd.DataFrame(rows, columns=columns).to_csv("slides.csv", index=False)
    assert not tile("new.svs", "new_patches").failed
    assert not extract("new_patches", "new_features", encoder="efficientnet-lite0").failed
    said: dict[str, Any] = {}
    exec(code, said)
    assert said["tiled"].counts == {"done": 10} and len(said["doubtful"]) == 10
    assert said["run"].metrics["counts"]["slides"] == 10 and said["doubtful"]["prob_tumour"].is_monotonic_increasing
    assert len(said["seen"].attention) == len(said["seen"].coords) > 0
    assert said["new"]["slide_id"].tolist() == ["new"] and not said["new"]["in_training"].any()


def test_what_is_not_there_is_seen(told: dict[str, str]) -> None:
    text = "```\ntile-slides a \\\n  --out b --mpq 1  # --x\n```\nWith `--colour`, `train-mil --mpp 1`, `--mpp 0.5`."
    assert unknown_flags(text, told) == {"tile-slides --mpq", "--colour --colour", "train-mil --mpp"}
