"""How busy the processor is while it learns from mapped features that are not in memory, by the order of slides.

Slides of 5,000 patches × 1,024 lie one after another in a scratch file, as `train-mil --memory mapped` writes it. One
model of gated attention learns from all of them for one epoch, one slide a step, after the file was dropped from the
page cache: in the order of the file and in the shuffled order of a true epoch, where nothing is asked for ahead, and as
`train-mil` does it. Busy is the processor's time over the clock's, that in which other programs had the core left out.

With fewer DRAWN slides than SLIDES the rest of the file is a hole, which holds zeros and takes no room, and only the
way of `train-mil` is run: 10,000 slides are 100 GB.

    python tests/benchmarks/speed/bench_reading.py [FOLDER [SLIDES [DRAWN]]]   default: for temporary files, 40 40
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch

from mil.cohort.memory import MappedFeatures
from mil.cohort.splits import Fold
from mil.training import descent
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from classic_bags import cohort_of

PATCHES, DIM = 5000, 1024
SHUFFLED = descent.epoch_order
Order = Callable[[int, int, int, int], np.ndarray]


class NotAhead(MappedFeatures):
    """Leaves all to the system, which reads ahead within a slide alone."""

    def expect(self, index: int) -> None:
        pass


class Clock:
    """Of one epoch, from the moment when its order is asked for and its file is dropped from memory."""

    def __init__(self, file: IO[bytes], order: Order) -> None:
        self._file, self._order = file, order
        self.seconds, self.busy = 0.0, 0.0

    def begin(self, *of_epoch: int) -> np.ndarray:
        order = self._order(*of_epoch)
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._start = self._now()
        return order

    def end(self, *_: object) -> None:
        clock, processor, waiting = (now - then for now, then in zip(self._now(), self._start, strict=True))
        self.seconds, self.busy = clock - waiting, processor / (clock - waiting)

    def _now(self) -> tuple[float, float, float]:
        ran, waited, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
        return time.perf_counter(), ran / 1e9, waited / 1e9


def epoch(file: IO[bytes], features: MappedFeatures, order: Order, train: np.ndarray) -> Clock:
    cohort = replace(cohort_of(np.arange(len(features)) % 2, []), features=features)
    config = TrainConfig(epochs=1, batch_slides=1, loss="cross-entropy", parallel_models=1)
    fold = Fold(0, 0, 0, train=train, val=train[:0], test=train[:1])
    clock = Clock(file, order)
    descent.epoch_order = clock.begin
    cpu = torch.device("cpu")
    plan = replace(plan_training(cohort, [fold], config, cpu), at_once=1)
    train_folds(cohort, [fold], config, cpu, clock.end, plan)
    return clock


def main(folder: str = tempfile.gettempdir(), slides: int = 40, drawn: int = 0) -> None:
    drawn = drawn or slides
    torch.set_num_threads(1)
    with tempfile.TemporaryFile(dir=folder) as file:
        ahead, plain = MappedFeatures(file), NotAhead(file)
        rng = np.random.default_rng(0)
        for _ in range(drawn):
            ahead.append(rng.standard_normal((PATCHES, DIM), dtype=np.float32).astype(np.float16))
        size = 2 * PATCHES * DIM
        ahead._places.extend((slide * size, (PATCHES, DIM)) for slide in range(drawn, slides))
        os.ftruncate(file.fileno(), slides * size)
        plain._places = ahead._places
        ways = {
            "in the order of the file, the system's reading ahead": (plain, lambda *of: np.arange(slides)),
            "shuffled, the system's reading ahead": (plain, SHUFFLED),
            "shuffled, as train-mil does it": (ahead, SHUFFLED),
        }
        for name, (features, order) in list(ways.items())[0 if drawn == slides else -1 :]:
            clock = epoch(file, features, order, np.arange(slides))
            print(f"{slides} slides, {name}: {clock.seconds:.1f} s, processor {clock.busy:.0%} busy", flush=True)
    print(f"peak of memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
