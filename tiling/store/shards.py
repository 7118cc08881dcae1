"""Shards of a zarr v3 array of patches (N, P, P, 3), chunk = one patch, written and read without decoding.

A shard file is the compressed patches, each followed by its CRC-32C (zarr codec `crc32c`), and then the
index: (offset, length) of each as little-endian uint64, and the CRC-32C of the index (zarr v3
`sharding_indexed`, index at the end). Writing it here keeps one compressed patch in memory at a time; reading
it here hands out any patch's compressed bytes, and no flipped bit passes for a pixel.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import SlideError

PATCHES_PER_SHARD = 512
_ABSENT = np.uint64(2**64 - 1)
_INDEX_BYTES = PATCHES_PER_SHARD * 16


class ShardWriter:
    """Appends compressed patches to the shard files below `folder` (the array's folder)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._index: list[tuple[int, int]] = []
        self._shard = 0

    def append(self, data: bytes) -> None:
        if self._file is None:
            path = _shard_path(self._folder, self._shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._index.append((self._file.tell(), len(data) + 4))
        self._file.write(data)
        self._file.write(_checksum(data))
        if len(self._index) == PATCHES_PER_SHARD:
            self.close()

    def close(self) -> None:
        """Finish the shard that is open. Must be called after the last patch."""
        if self._file is None:
            return
        index = np.full((PATCHES_PER_SHARD, 2), _ABSENT, "<u8")
        index[: len(self._index)] = self._index
        self._file.write(index.tobytes())
        self._file.write(_checksum(index.tobytes()))
        self._file.close()
        self._file, self._index, self._shard = None, [], self._shard + 1


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / "c" / str(shard) / "0" / "0" / "0"


class ShardReader:
    """Hands out the compressed bytes of patches. Threads may share one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indices: dict[int, NDArray[np.uint64]] = {}

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> list[bytes]:
        """Compressed patches in the order asked for. Raises SlideError if a shard is missing, cut or damaged.

        Each shard is opened once, and neighbours that are asked for together are read together.
        """
        wanted = np.asarray(indices, np.int64)
        found: list[bytes] = [b""] * len(wanted)
        order = np.argsort(wanted, kind="stable")
        shards = wanted[order] // PATCHES_PER_SHARD
        for places in np.split(order, np.flatnonzero(np.diff(shards)) + 1):
            if len(places):
                entries = wanted[places] % PATCHES_PER_SHARD
                chunks = self._read_shard(int(wanted[places[0]]) // PATCHES_PER_SHARD, entries)
                for place, chunk in zip(places, chunks, strict=True):
                    found[place] = chunk
        return found

    def _read_shard(self, shard: int, entries: NDArray[np.int64]) -> list[bytes]:
        """Compressed patches of one shard; `entries` ascend."""
        path = _shard_path(self._folder, shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise SlideError(f"{path}: this part of the store is missing; tile the slide again") from None
        chunks = []
        try:
            if shard not in self._indices:
                self._indices[shard] = _read_index(file, path)
            for run in np.split(entries, np.flatnonzero(np.diff(entries) > 1) + 1):
                chunks += _read_run(file, self._indices[shard][run], path)
        finally:
            os.close(file)
        for entry, chunk in zip(entries, chunks, strict=True):
            if len(chunk) < 4 or _checksum(chunk[:-4]) != chunk[-4:]:
                raise SlideError(f"{path}: patch {entry} of this shard is damaged; tile the slide again")
        return [chunk[:-4] for chunk in chunks]


def _read_run(file: int, index: NDArray[np.uint64], path: Path) -> list[bytes]:
    """The bytes of neighbours in one shard, in one read; `index` holds their (offset, length)."""
    if (index == _ABSENT).any():
        raise SlideError(f"{path}: a patch is missing; tile the slide again")
    start, end = int(index[:, 0].min()), int(index.sum(1).max())
    data = os.pread(file, end - start, start)
    return [data[int(o) - start : int(o) - start + int(n)] for o, n in index]


def _read_index(file: int, path: Path) -> NDArray[np.uint64]:
    size = os.fstat(file).st_size
    tail = os.pread(file, _INDEX_BYTES + 4, max(0, size - _INDEX_BYTES - 4))
    index, checksum = tail[:_INDEX_BYTES], tail[_INDEX_BYTES:]
    if len(tail) < _INDEX_BYTES + 4 or _checksum(index) != checksum:
        raise SlideError(f"{path}: cut short or damaged ({size} bytes); tile the slide again")
    return np.frombuffer(index, "<u8").reshape(-1, 2)
