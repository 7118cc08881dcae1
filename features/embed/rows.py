"""Rows of the slides under way, and how they are dealt out: first come, first served, in batches of one size.

A batch takes up the next slide where one ends, so that a slide's length plays no part in how its rows are computed.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.embed.patch_source import PatchSource
from tiling.slides.slide import Pixels

Look = Callable[[range, Pixels], None]  # is shown patches (n, P, P, 3) as they are read, by several threads


class Slide:
    """One slide under way: where its patches come from, and its rows (N, D) as they are found."""

    def __init__(self, source: PatchSource, dim: int, look: Look | None = None) -> None:
        self.source, self.look = source, look
        self.values: NDArray[np.float32] = np.empty((source.count, dim), np.float32)
        self.fault: BaseException | None = None
        self.ended = threading.Event()  # no row is to come any more, nor is a patch being read
        self._left = source.count
        self._lock = threading.Lock()
        self.count_off(0)

    def count_off(self, rows: int) -> None:
        """So many are found, or given up."""
        with self._lock:
            self._left -= rows
            if self._left == 0:
                self.ended.set()


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of one slide."""

    slide: Slide
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Rows:
    """All functions may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Piece] = deque()

    def add(self, slide: Slide) -> None:
        with self._lock:
            if slide.source.count:
                self._waiting.append(Piece(slide, 0, slide.source.count))

    def next_side(self) -> int | None:
        """P in pixels of the next patch; None where there is none."""
        with self._lock:
            return self._waiting[0].slide.source.side if self._waiting else None

    def take(self, most: int, side: int, *, only_whole: bool) -> list[Piece]:
        """The next rows, at most so many, of patches of this side.

        only_whole: none where there are fewer and more of that side may come.
        """
        with self._lock:
            there = [len(piece) for piece in self._waiting if piece.slide.source.side == side]
            if only_whole and sum(there) < most and len(there) == len(self._waiting):
                return []
            taken: list[Piece] = []
            while most and self._waiting and self._waiting[0].slide.source.side == side:
                piece = self._waiting.popleft()
                middle = min(piece.stop, piece.start + most)
                taken.append(Piece(piece.slide, piece.start, middle))
                most -= middle - piece.start
                if middle < piece.stop:
                    self._waiting.appendleft(Piece(piece.slide, middle, piece.stop))
            return taken

    def give_up(self, slide: Slide, fault: BaseException | None = None) -> None:
        """Its rows that nobody has taken are not wanted any more."""
        with self._lock:
            slide.fault = slide.fault or fault
            dropped = [piece for piece in self._waiting if piece.slide is slide]
            self._waiting = deque(piece for piece in self._waiting if piece.slide is not slide)
        slide.count_off(sum(map(len, dropped)))

    def give_up_all(self, fault: BaseException) -> None:
        with self._lock:
            slides = {piece.slide for piece in self._waiting}
        for slide in slides:
            self.give_up(slide, fault)
