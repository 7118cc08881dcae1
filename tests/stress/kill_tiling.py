"""Kill `tile-slides` at random moments, resume it each time, and compare with an uninterrupted run, byte for byte.

    python tests/stress/kill_tiling.py [KILLS] [SEED]

Most kills are SIGKILL to the whole process group; every fifth is SIGTERM, which must end the job within seconds and
leave nothing half written. After each one, every store that stands under its final name is opened and verified.
Where all stores are there, half of the runs make them again with --overwrite, and no store may vanish. When a run
ends by itself the stores are compared, and the next round starts from nothing. Exit code 1 with what was found if
any of this fails.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.verify import verify_store

SLIDES = 3
TERM_S = 10.0  # in which SIGTERM must end the job
LEFT_BY_KILL = re.compile(
    r"s\d\.zarr(\.lock)?|\..*\.tmp-.*|summary\.json(\.lock)?|seen\.json(\.lock)?|qc|qc\.html(\.lock)?"
)
LEFT_BY_TERM = re.compile(r"s\d\.zarr|summary\.json|seen\.json|qc|qc\.html")
MOMENTS = ("any", "half written", "renamed")


def main(kills: int, seed: int) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder), rng)
        begun = time.monotonic()
        for number in range(kills):
            stress.kill_once(signal.SIGTERM if number % 5 == 4 else signal.SIGKILL)
        stress.finish()
        print(f"{kills} kills in {time.monotonic() - begun:.0f} s, an uninterrupted run takes {stress.usual_s:.1f} s")
        for name, count in sorted(stress.seen.items()):
            print(f"  {count:4d} × {name}")
    return 0


class Stress:
    """The slides, the folder that is tortured, and what was seen."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng, self.slides, self.out = rng, folder / "slides", folder / "killed"
        self.seen: Counter[str] = Counter()
        self.overwrite = False
        self.slides.mkdir()
        for seed in range(SLIDES):
            write_phantom(
                PhantomSpec(width_px=1504 + 500 * seed, height_px=1504, seed=seed, tumour=False),
                self.slides / f"s{seed}.svs",
            )
        begun = time.monotonic()
        whole = self.start(folder / "whole")
        require(whole.wait() == 0, "the uninterrupted run failed")
        self.usual_s = time.monotonic() - begun
        self.whole = stores(folder / "whole")
        require(len(list((folder / "whole").glob("*.zarr"))) == SLIDES, "the uninterrupted run made no stores")

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        script = Path(sys.executable).parent / "tile-slides"
        arguments = [script, self.slides, "--out", out, "--patch-px", "64", "--mpp", "0.25", "--workers", "2"]
        arguments += ["--overwrite"] if self.overwrite else []
        return subprocess.Popen(list(map(str, arguments)), stdout=-3, stderr=-3, start_new_session=True)

    def kill_once(self, sent: signal.Signals) -> None:
        """Start the job, wait for a moment, kill it, and look at what it left."""
        before = names(self.out)
        everything = len(list(self.out.glob("*.zarr"))) == SLIDES
        self.overwrite = everything and self.rng.random() < 0.5
        self.seen["runs with --overwrite"] += self.overwrite
        running = self.start(self.out)
        self._wait_for(self.rng.choice(MOMENTS), running)
        self.seen["ended before the kill"] += running.poll() is not None
        if running.poll() is None:
            os.killpg(running.pid, sent)
        begun = time.monotonic()
        code = running.wait(timeout=60)
        if sent == signal.SIGTERM:
            require(time.monotonic() - begun < TERM_S, "SIGTERM did not end the job within seconds")
        else:
            wait_for_the_dead(running.pid)
        self._look(before, LEFT_BY_TERM if sent == signal.SIGTERM and code in (0, 130) else LEFT_BY_KILL)
        self.seen[sent.name] += 1
        if code == 0:
            self._next_round()

    def finish(self) -> None:
        self.overwrite = False
        code = self.start(self.out).wait(timeout=120)
        require(code == 0, f"the last run ended with {code}")
        self._next_round()

    def _wait_for(self, moment: str, running: subprocess.Popen[bytes]) -> None:
        had = names(self.out)
        end = time.monotonic() + (1.3 * self.rng.random() * self.usual_s if moment == "any" else 20)
        while time.monotonic() < end and running.poll() is None:
            if moment == "half written" and self._half_written():
                time.sleep(self.rng.random() * 0.3)
                return
            if moment == "renamed" and any(n.endswith(".zarr") and i != had.get(n) for n, i in names(self.out).items()):
                time.sleep(self.rng.random() * 0.01)
                return
            time.sleep(0.001)

    def _half_written(self) -> list[Path]:
        return [p for p in self.out.glob(".*.zarr.tmp-*") if p.is_dir()]

    def _look(self, before: dict[str, int], allowed: re.Pattern[str]) -> None:
        found = names(self.out)
        odd = [name for name in found if name not in before and not allowed.fullmatch(name)]
        require(not odd, f"left behind: {odd}")
        self.seen["while a slide was half written"] += bool(self._half_written())
        self.seen["while a lock was held"] += any(n.endswith(".lock") for n in found)
        self.seen["with some stores done and some not"] += 0 < len(list(self.out.glob("*.zarr"))) < SLIDES
        for store in self.out.glob("*.zarr"):
            verify_store(store)  # raises what is wrong
            self.seen["stores verified after a kill"] += 1
        gone = [name for name in before if name.endswith(".zarr") and name not in found]
        require(not gone, f"stores that were there are gone: {gone}")

    def _next_round(self) -> None:
        """All slides are done: compare, and start again."""
        require(stores(self.out) == self.whole, "the stores differ from those of an uninterrupted run")
        left = [n for n in names(self.out) if not LEFT_BY_TERM.fullmatch(n)]
        require(not left, f"a finished run left {left}")
        self.seen["rounds, all stores equal to an uninterrupted run's"] += 1
        shutil.rmtree(self.out)


def names(folder: Path) -> dict[str, int]:
    """Name to inode of what is in a folder."""
    try:
        return {entry.name: entry.inode() for entry in os.scandir(folder)}
    except FileNotFoundError:
        return {}


def stores(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of every file of every store."""
    files = (p for store in folder.glob("*.zarr") for p in store.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def wait_for_the_dead(group: int) -> None:
    """Until no process of a killed group runs any more: the kernel may take a moment to end them."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 200, numbers[1] if len(numbers) > 1 else 0))
