"""What many small feature files cost beside one file with the same content, a group a slide, on a local disk.

    python tests/benchmarks/speed/bench_files.py [SLIDES]

Both are read three times in turn by h5py, all features and coordinates with the attributes, after a first read of each
that warms the disk's cache; the fastest is told. What else a command does with a slide is the same for both.
"""

import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

PATCHES, DIMENSIONS, ATTRIBUTES = 16, 576, 20


def main(slides: int) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, one = Path(name), Path(name) / "all.h5"
        with h5py.File(one, "w", libver="latest") as together:
            for number in range(slides):
                features = rng.standard_normal((PATCHES, DIMENSIONS)).astype(np.float16)
                with h5py.File(folder / f"s{number:06d}.h5", "w", libver="latest") as alone:
                    for place in (alone, together.create_group(f"s{number:06d}")):
                        place["features"], place["coords"] = features, np.zeros((PATCHES, 2), np.int64)
                        for key in range(ATTRIBUTES):
                            place.attrs[f"attribute {key}"] = "of a slide"
        ways = {"files": lambda: files(folder, slides), "one file": lambda: groups(one)}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(4):
            for way, read in ways.items():
                begun = time.process_time()
                read()
                taken[way].append(time.process_time() - begun)
        for way, seconds in taken.items():
            print(f"{way}: {1000 * min(seconds[1:]) / slides:.2f} ms a slide, of {slides:,}")


def files(folder: Path, slides: int) -> None:
    for number in range(slides):
        with h5py.File(folder / f"s{number:06d}.h5") as file:
            look(file)


def groups(one: Path) -> None:
    with h5py.File(one) as file:
        for name in file:
            look(file[name])


def look(place: h5py.Group) -> None:
    _ = dict(place.attrs), place["features"][:], place["coords"][:]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
