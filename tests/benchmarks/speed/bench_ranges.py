"""What tiling without copying would fetch of a slide elsewhere: bytes and ranges that `tile-slides` reads of a TIFF.

A phantom is tiled at 0.5 and 0.25 µm per pixel while each read of a tile is noted. Ranges with less than GAP_BYTES
between them count as one request, in the order of the file, as the best of all caches would ask for them.

    python tests/benchmarks/speed/bench_ranges.py [WIDTH_PX [HEIGHT_PX]]      default 16000 12000
"""

import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from tiling.config import TilingConfig
from tiling.manifest import SlideRow
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.pipeline import tile_slide
from tiling.slides import tiff

GAP_BYTES = 1 << 18


def ranges_read(slide: Path, mpp: float, out: Path) -> list[tuple[int, int]]:
    """Start and end of each read."""
    noted = []
    pread = os.pread

    def noting(file: int, count: int, offset: int) -> bytes:
        noted.append((offset, offset + count))
        return pread(file, count, offset)

    with mock.patch.object(tiff.os, "pread", noting):
        tile_slide(SlideRow("s", slide), TilingConfig(mpp=mpp), out)
    return noted


def main(width: int = 16_000, height: int = 12_000) -> None:
    with tempfile.TemporaryDirectory() as name:
        slide = Path(name, "s.svs")
        write_phantom(PhantomSpec(width_px=width, height_px=height, seed=0, tumour=True), slide)
        size = slide.stat().st_size
        print(f"{width} × {height} px, {size / 1e6:.0f} MB")
        for mpp in (0.5, 0.25):
            noted = ranges_read(slide, mpp, Path(name, f"{mpp}"))
            wanted = np.array(sorted(set(noted)))  # (R, 2)
            starts, ends = wanted[:, 0], np.maximum.accumulate(wanted[:, 1])
            requests = 1 + int((starts[1:] - ends[:-1] > GAP_BYTES).sum())
            fetched = (wanted[:, 1] - wanted[:, 0]).sum()
            print(
                f"{mpp} µm per pixel: {len(noted):,} reads, {len(wanted):,} of them different, of "
                f"{fetched / 1e6:.0f} MB ({fetched / size:.0%} of the file) in {requests} requests"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
