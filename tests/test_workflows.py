"""Container file, Slurm scripts and workflows do what they say, as far as that runs without their engines."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tiling.phantom.phantom import PhantomSpec, write_phantom

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "configs/slurm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = [*sorted(SLURM.glob("*.sh")), ROOT / "configs/Snakefile", ROOT / "configs/line.nf"]
SLURM_JOB = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}


@pytest.fixture(scope="module")
def helps(command):
    return {name: command(name, "--help").stdout for name in PROJECT["scripts"]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_commands_and_flags_are_there(file, helps):
    text, found = file.read_text().replace("\\\n", " "), 0
    for line in text.splitlines():
        if line.startswith(("#", "//")):
            continue
        for name in (name for name in helps if re.search(rf"(?<![\w/-]){name}(?![\w.])", line)):
            found += 1
            flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", line.split(name, 1)[1]))
            assert not flags - set(re.findall(r"--[a-z][\w-]*", helps[name])), (name, flags)
    assert found or file.name == "on-dask.sh"


def test_the_container_file_copies_what_is_there_and_makes_what_can_be_made():
    lines = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {word for word, _ in steps} <= {"ARG", "FROM", "RUN", "WORKDIR", "ENV", "COPY"}
    for _, rest in (step for step in steps if step[0] == "COPY"):
        assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    copied = {source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {Path(name).parts[0] for name in kept} - copied <= {".gitignore"}  # so that the tests find all
    runs = " && ".join(rest for word, rest in steps if word == "RUN")
    rules = re.findall(r"^([\w./]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([\w./]+)", runs)) <= set(rules) and "make test" in runs
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", runs)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]) and "--constraint constraints.txt" in runs


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    lines = ["slide_id,path,patient_id,tumour"]
    for number in range(8):
        spec = PhantomSpec(1504 + 64 * number, 1504, seed=1, tumour=False)  # one seed: its stamps are drawn once
        write_phantom(spec, folder / f"s{number}.svs")
        lines.append(f"s{number},s{number}.svs,p{number},{'yes' if number % 2 else 'no'}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder / "slides.csv"


@pytest.mark.long
def test_slurm_jobs_run_in_turn(slides, tmp_path, monkeypatch):
    """As bash runs them in an array of two; srun of the cluster script is a stand-in that runs the command here."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    for name, value in SLURM_JOB.items():
        monkeypatch.setenv(name, value)

    def submit(script, *arguments, task=0):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        done = subprocess.run(
            ["bash", SLURM / script, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr

    study, random = tmp_path / "study", ("--encoder", "mobilenet-v3-small", "--weights", "random", "--device", "cpu")
    for task in (1, 2):
        submit("tile.sh", slides, study, "--mpp", "1.0", "--patch-px", "128", task=task)
    for task in (1, 2):
        submit("extract.sh", slides, study, *random, task=task)
    assert len(list(study.glob("patches/*.zarr"))) == len(list(study.glob("features/*.h5"))) == 8
    fast = ("--folds", "2", "--inner-folds", "0", "--val-fraction", "0", "--epochs", "2", "--device", "cpu")
    submit("train.sh", slides, "tumour", study, *fast)
    assert (study / "run/metrics.json").exists() and len(list(study.glob("heatmaps/*.png"))) == 8
    there = ("train-mil", study / "features", "--labels", slides, "--target", "tumour", "--out", tmp_path / "again")
    submit("on-dask.sh", *there, *fast)
    kept = "fold-0/checkpoint.safetensors"
    assert (tmp_path / "again" / kept).read_bytes() == (study / "run" / kept).read_bytes()


def test_slurm_is_asked_for_what_its_scripts_use():
    for script in sorted(SLURM.glob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
        text = script.read_text()
        asked = {shlex.split(line)[1].split("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")}
        for variable, option in (("SLURM_ARRAY", "--array"), ("SLURM_CPUS", "--cpus-per-task"), ("NTASKS", "--ntasks")):
            assert variable not in text or option in asked, script
