"""How much of the time to copy slides `tile-slides --stage` hides behind tiling, from a throttled server on loopback.

The server is so slow that copying takes half as long as tiling. Hidden is what of the copies' time is not seen in the
wall time of the run with them, compared with a run on local files. One worker; medians of interleaved runs.

    python tests/benchmarks/speed/bench_staging.py [SLIDES] [RUNS]      default 20 slides, 3 runs
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests/helpers"))
sys.path.insert(0, str(ROOT))  # the packages before the folders of their tests

from web_server import WebServer, serving  # noqa: E402

from tiling.phantom.phantom import PhantomSpec, write_phantom  # noqa: E402

COMMAND = [sys.executable, "-c", "from tiling.cli import main; main()"]
SHARE = 0.5  # of tiling's time that copying takes


def tiled_s(table: Path, out: Path, *arguments: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    given = [str(table), "--out", str(out), "--workers", "1", *arguments]
    subprocess.run([*COMMAND, *given], check=True, capture_output=True)
    return time.perf_counter() - start


def copies_s(server: WebServer, slides: int) -> float:
    """One after the other, as fast as the server gives them."""
    start = time.perf_counter()
    for number in range(slides):
        with urlopen(server.url(f"{number}.svs")) as answer:
            while answer.read(1 << 20):
                pass
    return time.perf_counter() - start


def main(slides: int = 20, runs: int = 3) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        for number in range(slides):
            path = folder / f"slides/{number}.svs"
            if number:
                shutil.copy(folder / "slides/0.svs", path)
            else:
                write_phantom(PhantomSpec(width_px=8000, height_px=6016, seed=0, tumour=True), path)
        local = folder / "local.csv"
        local.write_text("path\n" + "".join(f"slides/{number}.svs\n" for number in range(slides)))
        size = path.stat().st_size
        tiled_s(local, folder / "out")  # the disk's cache is warm
        rate = size * slides / (SHARE * tiled_s(local, folder / "out"))
        with serving(folder / "slides", rate) as server:
            remote = folder / "remote.csv"
            remote.write_text("path\n" + "".join(f"{server.url(f'{number}.svs')}\n" for number in range(slides)))
            found = []
            for _ in range(runs):
                plain = tiled_s(local, folder / "out")
                staged = tiled_s(remote, folder / "out", "--stage", str(folder / "fast"))
                found.append((plain, copies_s(server, slides), staged))
        plain, copying, staged = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{slides} slides of {size / 1e6:.1f} MB at {rate / 1e6:.1f} MB/s: local {plain:.1f} s, ", end="")
        print(f"copies alone {copying:.1f} s, with --stage {staged:.1f} s", flush=True)
        hidden = statistics.median(1 - (s - p) / c for p, c, s in found)
        print(f"hidden: {hidden:.1%} of the copies' time (target 90 %; the first copy, {1 / slides:.0%}, cannot be)")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    main(*map(int, sys.argv[1:]))
