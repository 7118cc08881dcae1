"""The commands on 58 real H&E images (UCSB breast): does attention beat the mean, do ImageNet weights beat random ones?

tile-slides, extract-features with EfficientNet-Lite0 in fp32, train-mil, defaults but for what the images need (no
scale, and tissue all over). The 10 source slides are the patients, so none stands on two sides of a fold. Prints
out-of-fold image AUROC with its interval, as the runs' metrics.json have it. Works in a folder that is gone at the end,
or in FOLDER.

    python tests/benchmarks/accuracy/accuracy_ucsb.py [FOLDER]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mil.run.tables import read_metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from real_data import DATA
from ucsb_breast import unpack

TARGET = "diagnosis"
ROWS = {"default": "ImageNet weights", "random": "random weights"}
HEADS = ("gated-abmil", "mean")


def call(command: str, *arguments: object) -> None:
    """Run a command of this installation; CalledProcessError, after its own words, if it fails."""
    subprocess.run([Path(sys.executable).parent / command, *map(str, arguments)], check=True, stdout=sys.stderr)


def embed(folder: Path, weights: str = "default") -> tuple[Path, Path]:
    """The slide table and the folder of feature files, made where they are not there."""
    images, patches, features = (folder / name for name in ("images", "patches", f"features-{weights}"))
    images.mkdir(parents=True, exist_ok=True)
    table = unpack(DATA / "ucsb_breast", images)
    how = ["--mpp", "native", "--patch-px", 224, "--tissue", "all", "--grid", "origin"]
    call("tile-slides", table, "--out", patches, *how)
    network = ["--encoder", "efficientnet-lite0", "--weights", weights, "--precision", "fp32"]  # on every processor
    call("extract-features", patches, "--out", features, *network)
    return table, features


def auroc(folder: Path, weights: str, head: str) -> str:
    table, features = embed(folder, weights)
    run = folder / f"run-{weights}-{head}"
    call("train-mil", features, "--labels", table, "--target", TARGET, "--out", run, "--head", head)
    found = read_metrics(run)["slide"]["auroc"]
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def bench(folder: Path) -> None:
    print("| features |", *(f"`{head}` |" for head in HEADS))
    print("| --- |", *("--- |" for _ in HEADS))
    for weights, name in ROWS.items():
        print(f"| {name} |", *(f"{auroc(folder, weights, head)} |" for head in HEADS), flush=True)


if __name__ == "__main__" and DATA.is_dir():
    with tempfile.TemporaryDirectory() as temporary:
        bench(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
