"""Patches through a network: rows of all slides under way, in batches of one shape, on all lanes of a machine.

A lane is what does one batch after another: a core of a CPU (cores that share one batch wait for each other), or a
GPU. Batches for a GPU are decoded ahead by threads into a ring of pinned buffers, in place; one thread begins copies
and kernels, whose results arrive by themselves. A core decodes and computes its own batches, with a ring of one.

Every batch has the same shape, the last one too, whose other rows mean nothing. Which rows share a batch depends on
the moment, and the features do not: a row has the same value in each place of a batch, whatever its neighbours are.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.embed.patch_source import PatchSource
from features.embed.queues import Mark, Network, Queues
from features.embed.rows import Look, Piece, Rows, Slide
from tiling.jobs.errors import SlideError
from tiling.jobs.workers import alive
from tiling.slides.slide import Pixels

_ON_DEVICE = 2  # batches; one is computed while the next one is copied
_DECODED_AT_ONCE = 8  # patches by one thread
_LOOK_S = 0.2  # how often a slide that waits for its rows looks whether it is to end


@dataclass(frozen=True)
class Lane:
    queues: Queues
    network: Network


class _Buffers:
    """Those of one batch of B: what is decoded, the same on the device, and what is found."""

    def __init__(self, queues: Queues, size: int, side: int, dim: int) -> None:
        self.pixels = queues.host(size, side, side, 3, dtype=torch.uint8)
        self.there = queues.beside(self.pixels)
        self.found = queues.host(size, dim, dtype=torch.float32)


@dataclass(frozen=True)
class _Batch:
    pieces: list[Piece]
    buffers: _Buffers
    decoding: list[Future[None]]

    @property
    def places(self) -> Iterator[tuple[Piece, int]]:
        """Each piece and the row of the batch that it begins at."""
        row = 0
        for piece in self.pieces:
            yield piece, row
            row += len(piece)


class Lanes:
    """A network of D outputs on some lanes, and what waits for it. Batches hold `size` patches."""

    def __init__(self, lanes: Sequence[Lane], size: int, dim: int, decoders: Executor) -> None:
        self._rows = Rows()
        self._size, self._dim, self._decoders = size, dim, decoders
        self._step = size  # patches that a device's memory holds at once, as far as is known
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._count = len(lanes)
        self._threads = ThreadPoolExecutor(len(lanes))

    def values(self, patches: PatchSource, look: Look | None = None) -> NDArray[np.float32]:
        """(N, D) of all patches of a slide. Several threads do several slides at once."""
        slide = Slide(patches, self._dim, look)
        self._rows.add(slide)
        try:
            for _ in range(self._count):
                self._threads.submit(self._drive)
            while not slide.ended.wait(_LOOK_S):
                alive()
        finally:
            patches.stop()
            self._rows.give_up(slide)
            slide.ended.wait()
        if slide.fault:
            raise slide.fault
        return slide.values

    def _drive(self) -> None:
        """Go on with whatever waits, until nothing does."""
        lane = self._free.get()
        try:
            while (side := self._rows.next_side()) is not None:
                self._drive_side(lane, side)
        except BaseException as error:  # whoever waits for rows must hear of it
            self._rows.give_up_all(error)
        finally:
            self._free.put(lane)

    def _drive_side(self, lane: Lane, side: int) -> None:
        """The same, as long as the next patches have this side.

        What waits and is no whole batch is begun as soon as nothing else is under way.
        """
        free = self._ring(lane.queues, side)
        size = len(free[0].pixels)
        decoding: deque[_Batch] = deque()
        running: deque[tuple[_Batch, Mark]] = deque()
        while True:
            busy = bool(decoding or running)
            if free and (pieces := self._rows.take(size, side, only_whole=busy)):
                decoding.append(self._decode(lane.queues, pieces, free.pop()))
            elif decoding and len(running) < _ON_DEVICE:
                batch = decoding.popleft()
                running.append((batch, self._begin(lane, batch)))
            elif running:
                batch, mark = running.popleft()
                self._finish(batch, mark)
                free.append(batch.buffers)
            else:
                return

    def _ring(self, queues: Queues, side: int) -> list[_Buffers]:
        """Buffers for all batches that may be under way, smaller ones where memory does not hold them."""
        while True:
            try:
                return [_Buffers(queues, self._size, side, self._dim) for _ in range(queues.depth)]
            except torch.OutOfMemoryError as error:
                self._size = _halved(self._size, side, error)

    def _decode(self, queues: Queues, pieces: list[Piece], buffers: _Buffers) -> _Batch:
        batch = _Batch(pieces, buffers, [])
        pixels = buffers.pixels.numpy()
        for piece, row in batch.places:
            for start in range(piece.start, piece.stop, _DECODED_AT_ONCE):
                patches = range(start, min(start + _DECODED_AT_ONCE, piece.stop))
                first = row + start - piece.start
                fill = partial(self._fill, piece.slide, patches, pixels[first : first + len(patches)])
                if queues.depth > 1:
                    batch.decoding.append(self._decoders.submit(fill))
                else:
                    fill()
        return batch

    def _fill(self, slide: Slide, patches: range, out: Pixels) -> None:
        """Read into the batch; what goes wrong is the fault of that slide alone."""
        if slide.fault is not None:
            return
        try:
            slide.source.read(patches, out)
            if slide.look:
                slide.look(patches, out)
        except Exception as error:
            self._rows.give_up(slide, error)

    def _begin(self, lane: Lane, batch: _Batch) -> Mark:
        wait(batch.decoding)
        try:
            copied = lane.queues.copy(batch.buffers.pixels, batch.buffers.there)
            network = partial(self._in_steps, lane.network)
            return lane.queues.compute(network, batch.buffers.there, batch.buffers.found, copied)
        except Exception as error:
            return _Failed(error)

    def _finish(self, batch: _Batch, mark: Mark) -> None:
        try:
            mark.synchronize()
        except Exception as error:
            for slide in {piece.slide for piece in batch.pieces}:
                self._rows.give_up(slide, error)
        found = batch.buffers.found.numpy()
        for piece, row in batch.places:
            piece.slide.values[piece.start : piece.stop] = found[row : row + len(piece)]
            piece.slide.count_off(len(piece))

    @torch.inference_mode()
    def _in_steps(self, network: Network, pixels: Tensor) -> Tensor:
        """network(pixels), in steps of one size where the device's memory does not hold all; so are all that follow."""
        while True:
            step = min(self._step, len(pixels))
            try:
                if step == len(pixels):
                    return network(pixels)
                starts = [min(start, len(pixels) - step) for start in range(0, len(pixels), step)]
                found = torch.empty(len(pixels), self._dim, device=pixels.device)
                for start in starts:
                    found[start : start + step] = network(pixels[start : start + step])
                return found
            except torch.OutOfMemoryError as error:
                self._step = _halved(step, pixels.shape[1], error)


def _halved(size: int, side: int, error: torch.OutOfMemoryError) -> int:
    if size == 1:
        raise SlideError(f"one patch of {side} px does not fit the GPU's memory") from error
    return (size + 1) // 2


@dataclass(frozen=True)
class _Failed:
    error: Exception

    def synchronize(self) -> None:
        raise self.error
