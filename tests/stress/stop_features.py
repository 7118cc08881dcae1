"""Stop `extract-features` at random moments on a busy machine, resume it each time, and compare with a run left alone.

    python tests/stress/stop_features.py [STOPS] [SEED]      default 200 0, half an hour on two cores

Six jobs in folders of their own keep the machine busy. SIGTERM and SIGINT take turns, from the moment at which a job
has begun with a slide (before, Python is starting) to its end. Each stop must end the job within a minute with exit
code 130, without a traceback, and leave whole files alone; or with 0 where it had ended by itself, or by the signal
where Python was ending, all work done. Then its features are compared, and the next round starts from nothing. Exit
code 1 with what was found if any of this fails.
"""

import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from features.feature_file import read_embeddings
from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom

SLIDES = 4
END_S = 60.0
LEFT = {"summary.json", "seen.json", "statistics.json"} | {f"s{i}.h5" for i in range(SLIDES)}
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from features.cli import main; main()"
)
JOBS = 6


def main(stops: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stores(folder)
        with start(folder, "whole") as alone:
            alone.communicate()
        require(alone.returncode == 0, "the run that was left alone failed")
        whole = features(folder / "whole")
        each = [Stops(folder, f"job{job}", whole, random.Random(1000 * seed + job)) for job in range(JOBS)]
        with ThreadPoolExecutor(JOBS) as threads:
            turns = [threads.submit(each[number % JOBS].stop, number) for number in range(stops)]
            for turn in turns:
                turn.result()
    took = [seconds for job in each for seconds in job.took]
    print(f"{stops} stops; a job ended {statistics.median(took):.1f} s after, {max(took):.1f} s at most")
    for what, count in sorted(sum((job.seen for job in each), Counter()).items()):
        print(f"  {count:4d} × {what}")
    return 0


class Stops:
    """One folder that is stopped again and again, and what was seen."""

    def __init__(self, folder: Path, name: str, whole: dict[str, bytes], rng: random.Random) -> None:
        self.folder, self.name, self.whole, self.rng = folder, name, whole, rng
        self.seen: Counter[str] = Counter()
        self.took: list[float] = []
        self._one = threading.Lock()

    def stop(self, number: int) -> None:
        with self._one:
            out = self.folder / self.name
            sign = (signal.SIGTERM, signal.SIGINT)[number // JOBS % 2]
            code, seconds = stop_once(start(self.folder, self.name), out, sign, self.rng.random())
            self.took.append(seconds)
            self.seen[f"{sign.name}, exit code {code}"] += 1
            left = {path.name for path in out.glob("*")}
            require(left <= LEFT, f"left behind: {sorted(left - LEFT)}")
            there = features(out)
            self.seen["stops with some slides done and some not"] += 0 < len(there) < SLIDES
            require(there.items() <= self.whole.items(), "features differ from those of a run that was left alone")
            if code != 130:
                require(there == self.whole and (out / "summary.json").exists(), "a run that ended lacks slides")
                self.seen["rounds"] += 1
                shutil.rmtree(out)


def make_stores(folder: Path) -> None:
    rows = []
    for i in range(SLIDES):
        path = folder / f"s{i}.svs"
        write_phantom(PhantomSpec(width_px=1056, height_px=1056 + 320 * i, seed=i, tumour=False), path)
        rows.append(SlideRow(path.stem, path))
    tile_slides(rows, TilingConfig(patch_px=64, mpp=0.25), folder / "patches")


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    arguments = [folder / "patches", "--out", folder / out, "--encoder", "resnet18", "--weights", "random"]
    arguments += ["--device", "cpu", "--precision", "fp32", "--engine", "torch"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_once(running: subprocess.Popen[str], out: Path, sign: signal.Signals, share: float) -> tuple[int, float]:
    """Its exit code, and the seconds that it took to end. share: of the time that it took to begin, left for work."""
    begun = time.monotonic()
    while running.poll() is None and not list(out.glob("*.lock")):
        time.sleep(0.01)
    end = time.monotonic() + share * (time.monotonic() - begun)
    while running.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(sign)
    sent = time.monotonic()
    try:
        _, said = running.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        running.kill()
        raise SystemExit(f"FAILED: {sign.name} did not end the job within {END_S:.0f} s") from None
    require(running.returncode in (0, 130, -sign), f"exit code {running.returncode}: {said}")
    require("Traceback" not in said, said)
    return running.returncode, time.monotonic() - sent


def features(folder: Path) -> dict[str, bytes]:
    """Slide to values. A file that is not whole raises."""
    return {path.stem: read_embeddings(path).features.tobytes() for path in folder.glob("*.h5")}


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 200, numbers[1] if len(numbers) > 1 else 0))
