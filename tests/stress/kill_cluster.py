"""Kill workers, the scheduler, the command or the object store at random moments, and compare with a run left alone.

    python tests/stress/kill_cluster.py [KILLS] [SEED]

`tile-slides --scheduler` and `extract-features --scheduler` run in turn on small slides, into an object store (moto,
of the S3 protocol) in one round and into local folders in the next. What is killed, by SIGKILL, is started again; the
store breaks answers off and says 503 for a while. A command that has ended otherwise than by a kill is run again
until it ends with 0. Then all stores and feature files are compared with those of one machine, byte for byte, and
nothing else may lie beside them (but what the store was tried with by a command killed less than a minute ago). Exit
code 1 with what was found if any of this fails.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))

from dask_processes import DaskProcesses  # noqa: E402
from object_server import BUCKET, ObjectServer, leading_to, serving_objects  # noqa: E402

from tiling.objects.folder import folder_at  # noqa: E402
from tiling.phantom.phantom import PhantomSpec, write_phantom  # noqa: E402
from tiling.store.objects import fetch_store, find_store  # noqa: E402

SLIDES = 6
TILE = ("--mpp", "1.0", "--patch-px", "64")
EXTRACT = ("--encoder", "mobilenet-v3-small", "--weights", "random", "--device", "cpu", "--precision", "fp32")
QUICKLY = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "50"}
VICTIMS = ("worker", "worker", "worker", "command", "command", "store", "store", "scheduler")  # the last costs 40 s
OF_RUNS = ("summary.json", "seen.json", "qc.html", "statistics.json")


def main(kills: int, seed: int) -> None:
    os.environ |= {**QUICKLY, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name, serving_objects() as server, leading_to(server):
        os.environ["TMPDIR"] = name
        stress = Stress(Path(name), server, random.Random(seed), kills)
        begun = time.monotonic()
        while stress.killed.total() < kills:
            stress.round()
        print(f"{stress.killed.total()} kills in {time.monotonic() - begun:.0f} s: {dict(stress.killed)}")
        print(f"{stress.rounds} rounds, each of {SLIDES} slides to the bytes of one machine; {dict(stress.seen)}")


class Stress:
    """The slides, what one machine makes of them, and what was seen."""

    def __init__(self, folder: Path, server: ObjectServer, rng: random.Random, kills: int) -> None:
        self.folder, self.server, self.rng, self.kills = folder, server, rng, kills
        self.killed: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.rounds = 0
        for number in range(SLIDES):
            spec = PhantomSpec(2000 + 300 * number, 2000, seed=number, tumour=False)
            write_phantom(spec, folder / f"slides/s{number}.svs")
        for command in commands(folder / "slides", str(folder / "whole/patches"), str(folder / "whole/features")):
            require(start(command).wait() == 0, f"the run of one machine failed: {command}")
        self.whole = content(folder / "whole")

    def round(self) -> None:
        self.rounds += 1
        self.server.begin(f"round {self.rounds}")
        elsewhere = self.rounds % 2 == 1
        place = self.server.place if elsewhere else str(self.folder / "killed")
        self.cluster = DaskProcesses(self.folder).__enter__()
        try:
            for command in commands(self.folder / "slides", f"{place}/patches", f"{place}/features"):
                self._until_done(command)
        finally:
            self.cluster.__exit__()
        found = fetched(place, self.folder / "killed") if elsewhere else content(self.folder / "killed")
        different = [key for key in found.keys() | self.whole.keys() if found.get(key) != self.whole.get(key)]
        require(not different, f"round {self.rounds} ({place}): {different[:5]}")
        self.seen["into the object store" if elsewhere else "into a folder"] += 1
        shutil.rmtree(self.folder / "killed")

    def _until_done(self, command: list[str]) -> None:
        for _ in range(self.kills + 10):  # a killed command is begun again, and nothing else may end it for ever
            running = start([*command, "--scheduler", self.cluster.address])
            while running.poll() is None:
                time.sleep(self.rng.uniform(0.2, 3.0))
                if running.poll() is None and self.killed.total() < self.kills:
                    self._kill(self.rng.choice(VICTIMS), running)
            if running.returncode == 0:
                return
            self.seen[f"ended with {running.returncode}"] += 1
            self._heal()
        require(False, f"does not end: {command}: {(self.folder / 'told').read_text()[-2000:]}")

    def _kill(self, victim: str, running: "subprocess.Popen[bytes]") -> None:
        self.killed[victim] += 1
        print(victim, end=" ", flush=True)
        if victim == "worker":
            process = self.rng.choice(self.cluster.workers)
            self.cluster.kill(process)
            self.cluster.workers.remove(process)
            self.cluster.add_worker()
        elif victim == "scheduler":
            self.cluster.kill(self.cluster.scheduler)
            running.wait(120)
        elif victim == "command":
            running.kill()
            running.wait()
        else:
            every = [503, "cut", "lost"] * 3
            self.rng.shuffle(every)
            self.server.faults = {("PUT", ""): every[:5], ("GET", ""): every[5:]}

    def _heal(self) -> None:
        """A cluster of its own, where the scheduler was lost; its workers end with it."""
        if self.cluster.scheduler.poll() is not None:
            self.cluster.__exit__()
            self.cluster = DaskProcesses(self.folder).__enter__()


def commands(slides: Path, patches: str, features: str) -> list[list[str]]:
    return [
        ["tile-slides", str(slides), "--out", patches, *TILE],
        ["extract-features", patches, "--out", features, *EXTRACT],
    ]


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    script = str(Path(sys.executable).parent / command[0])
    with (Path(os.environ["TMPDIR"]) / "told").open("wb") as told:
        return subprocess.Popen([script, *command[1:]], stdout=told, stderr=told)


def content(folder: Path) -> Mapping[str, bytes]:
    """All but what is said of a run."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name not in OF_RUNS}
    return {name: path.read_bytes() for name, path in files.items() if "patches/qc/" not in name}


def fetched(place: str, into: Path) -> Mapping[str, bytes]:
    """As it would lie in a local folder, with whatever else lies there that no store's root names."""
    patches, features = folder_at(f"{place}/patches"), folder_at(f"{place}/features")
    tokens = {}
    for name in patches.names()[0]:
        if name.endswith(".zarr") and (found := find_store(patches, name.removesuffix(".zarr"))):
            tokens[name] = found.token
            fetch_store(patches, name.removesuffix(".zarr"), into / "patches")
    for name in features.files():
        if not name.startswith(".tried/") and (read := features.read(name)) is not None:
            (into / "features").mkdir(parents=True, exist_ok=True)
            (into / "features" / name).write_bytes(read[0])
    loose = [key for key in patches.files() if key.endswith(".lock")]
    require(not loose, f"left behind in {BUCKET}: {loose}")
    return content(into)


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    main(numbers[0] if numbers else 100, numbers[1] if len(numbers) > 1 else 0)
