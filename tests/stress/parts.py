"""64 processes with a part of 1/64 each, several at once, against one run: every output, byte for byte.

    python tests/stress/parts.py [PARTS [SLIDES [AT_ONCE]]]        default 64 66 4

`tile-slides` runs as a command for each part. `extract-features` runs in processes that are forked when the network is
loaded, which would take most of the time. Exit code 1 with what was found if a slide is lost, done twice or different.
"""

import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kill_tiling import require

from features import extract
from features.encoders import load_encoder
from tiling.phantom.phantom import PhantomSpec, write_phantom

FLAGS = ("--mpp", "1.0", "--patch-px", "128", "--workers", "1")
ENCODER = {"encoder": "mobilenet-v3-small", "weights": "random", "device": "cpu"}
DIFFERENT = 6  # slides; the others are copies under other names


def main(parts: int, slides: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        make_slides(here / "slides", slides)
        for out in (here / "one", here / "many"):
            out.mkdir()
        tile(here / "slides", here / "one")
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda n: tile(here / "slides", here / "many", f"{n}/{parts}"), range(1, parts + 1)))
        compare(here, "patches", "tile-slides", parts, slides)
        load_encoder(ENCODER["encoder"], ENCODER["weights"], 0)
        with multiprocessing.get_context("fork").Pool(at_once, maxtasksperchild=1) as processes:
            tasks = [(here / "many", f"{n}/{parts}") for n in range(1, parts + 1)]
            processes.starmap(embed, [(here / "one", ""), *tasks], chunksize=1)
        compare(here, "features", "extract-features", parts, slides)


def make_slides(folder: Path, slides: int) -> None:
    folder.mkdir()
    for number in range(slides):
        path = folder / f"s{number:03d}.svs"
        if number < DIFFERENT:
            side = 1024 + 256 * number
            write_phantom(PhantomSpec(width_px=side, height_px=1024, seed=number, tumour=False), path)
        else:
            shutil.copy(folder / f"s{number % DIFFERENT:03d}.svs", path)


def tile(slides: Path, out: Path, part: str = "") -> None:
    command = [Path(sys.executable).parent / "tile-slides", slides, "--out", out / "patches", *FLAGS]
    command += ["--part", part] if part else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    require(done.returncode == 0, done.stdout + done.stderr)


def embed(out: Path, part: str) -> None:
    outcomes = extract(out / "patches", out / "features", part=part, **ENCODER)
    require(not outcomes.failed, str(outcomes.failed))


def compare(here: Path, kind: str, command: str, parts: int, slides: int) -> None:
    one, many = ({file: read for file, read in files(here / run / kind)} for run in ("one", "many"))
    require(one.keys() == many.keys(), f"{command}: only in one of both: {sorted(one.keys() ^ many.keys())[:9]}")
    differing = [file for file in one if one[file] != many[file]]
    require(not differing, f"{command}: other bytes: {differing[:9]}")
    said = [json.loads(file.read_text())["slides"] for file in (here / "many" / kind).glob("summary-*.json")]
    done = [slide for of_part in said for slide, how in of_part.items() if how["status"] == "done"]
    require(len(said) == parts and len(done) == len(set(done)) == slides, f"{command}: {len(done)} done in {len(said)}")
    print(f"{command}: {parts} parts, {slides} slides done once each, {len(one)} files of the same bytes", flush=True)


def files(folder: Path):
    """All that both kinds of run write; summaries and what was seen are a part's own."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith(("summary", "seen")):
            yield file.relative_to(folder).as_posix(), file.read_bytes()


if __name__ == "__main__":
    main(*[int(n) for n in sys.argv[1:]] or [64, 66, 4])
