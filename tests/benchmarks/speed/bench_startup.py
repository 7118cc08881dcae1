"""How long `tile-slides` takes to begin: help, a run with nothing left to do, and a worker's first answer.

Seconds of wall and of CPU (user + system, which other load on the machine hardly changes), medians.

    python tests/benchmarks/speed/bench_startup.py [RUNS]      default 5
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tiling.jobs.workers import load_ahead, map_unordered
from tiling.phantom.phantom import PhantomSpec, write_phantom

COMMAND = [sys.executable, "-c", "from tiling.cli import main; main()"]


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and of CPU, of processes that `work` starts and ends."""
    before, start = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), time.perf_counter()
    work()
    return time.perf_counter() - start, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before


def command(*arguments: object) -> None:
    subprocess.run([*COMMAND, *map(str, arguments)], check=True, capture_output=True)


def answer(number: int) -> int:
    return number


def first_answer_s() -> float:
    """From the wish for a worker to what it gives back."""
    start = time.perf_counter()
    assert list(map_unordered(answer, [1], 1)) == [(1, 1)]
    return time.perf_counter() - start


def median(values: list[float]) -> float:
    return statistics.median(values)


def main(runs: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder, "s.svs"), Path(folder, "out")
        write_phantom(PhantomSpec(width_px=8000, height_px=6016, seed=0, tumour=True), slide)
        command(slide, "--out", out)
        works = {
            "python, nothing else": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
            "tile-slides --help": lambda: command("--help"),
            "tile-slides, all is finished": lambda: command(slide, "--out", out),
        }
        costs = {name: [cost(work) for _ in range(runs)] for name, work in works.items()}
        for name, measured in costs.items():
            wall, cpu = (median(list(values)) for values in zip(*measured, strict=True))
            print(f"{name:40} {wall:6.2f} s, {cpu:5.2f} s of CPU", flush=True)
        load_ahead("tiling.pipeline")
        print(f"{'first worker, until its server has loaded':40} {first_answer_s():6.2f} s", flush=True)
        print(f"{'any later worker':40} {median([first_answer_s() for _ in range(runs)]):6.2f} s", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[3]))
    main(*map(int, sys.argv[1:]))
