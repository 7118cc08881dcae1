"""Tile a slide without a pyramid and say the memory of the process that did it: at most RSS_MAX, else exit code 1.

    python tests/stress/one_level.py [SIDE_PX [TILE_PX]]

The slide is an Aperio file that OpenSlide reads, of 100,000 × 100,000 px unless SIDE_PX says otherwise. It takes a few
megabytes: all tiles with tissue are the same bytes, and those of glass were left out, as scanners do.
"""

import json
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from mutate_slides import watch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

RSS_MAX = 600 * 2**20
TISSUE_PX = 4096  # side of the square of tissue in the middle


def write_one_level(path: Path, side: int, tile: int) -> None:
    """A classic TIFF of one directory; tifffile would write each tile's bytes again."""
    picture = np.tile(immunohistochemistry()[:256, :256], (-(-tile // 256), -(-tile // 256), 1))[:tile, :tile]
    data = zlib.compress(picture.tobytes())
    said = f"Aperio Image Library v10.0.51\r\n{side}x{side} ({tile}x{tile}) Q=90|AppMag = 40|MPP = 0.25\0".encode()
    with path.open("wb") as file:
        file.write(b"II*\0" + bytes(4))

        def put(content: bytes) -> int:
            place = file.tell() + file.tell() % 2
            file.seek(place)
            file.write(content)
            return place

        there = _tissue(side, tile)
        columns = there * np.uint32(put(data)), there * np.uint32(len(data))
        offsets, counts = (put(values.astype("<u4").tobytes()) for values in columns)
        tags = [
            (256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, put(struct.pack("<3H", 8, 8, 8))), (259, 3, 1, 8),
            (262, 3, 1, 2), (270, 2, len(said), put(said)), (277, 3, 1, 3), (284, 3, 1, 1), (322, 4, 1, tile),
            (323, 4, 1, tile), (324, 4, there.size, offsets), (325, 4, there.size, counts),
        ]  # fmt: skip
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        directory = put(struct.pack("<H", len(tags)) + entries + bytes(4))
        file.seek(4)
        file.write(struct.pack("<I", directory))


def _tissue(side: int, tile: int) -> NDArray[np.bool_]:
    """Of each tile, row by row, whether it has tissue."""
    middle = (np.arange(-(-side // tile)) + 0.5) * tile
    inside = np.abs(middle - side / 2) < TISSUE_PX / 2
    return np.logical_and.outer(inside, inside).ravel()


def main(side: int, tile: int) -> int:
    with tempfile.TemporaryDirectory(prefix="one-level-") as name:
        slide, out = Path(name, "one.svs"), Path(name, "out")
        write_one_level(slide, side, tile)
        command = [Path(sys.executable).parent / "tile-slides", slide, "--out", out, "--workers", "1"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        peak = watch(running, out, 3600)["one"]
        outcome = json.loads((out / "summary.json").read_text())["slides"]["one"]
    print(f"{side:,} px in tiles of {tile} px: {outcome}; peak {peak / 2**20:.0f} MiB")
    return int(peak > RSS_MAX or outcome["status"] != "done")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    sys.exit(main(*numbers, *(100_000, 256)[len(numbers) :]))
