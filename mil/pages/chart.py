"""Line charts as SVG text for a page: colours come from the page's style sheet, so they are right in dark and light.

Classes used: `axis`, `grid`, `tick`, `label`; `line`, `band`, `dot`, `guide`, with `c0` to `c5` for the colour.
The same data give the same bytes.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

COLOURS = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 38


class Chart:
    """One pair of axes. `x` and `y` are the data's ends, `size` is (width, height) in CSS pixels."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        size: tuple[int, int] = (380, 340),
        labels: tuple[str, str] = ("", ""),
        ticks: int = 5,
        whole_x: bool = False,
    ) -> None:
        self._x, self._y, self._size = x, y, size
        self._parts: list[str] = []
        self._axes(labels, ticks, whole_x)

    def line(self, x: ArrayLike, y: ArrayLike, kind: str) -> None:
        """A line through the points; it is broken where y is not a number."""
        runs: list[list[str]] = []
        run: list[str] = []
        for px, py in self._pixels(x, y):
            if math.isfinite(py):
                run.append(f"{px:.1f},{py:.1f}")
            elif run:
                runs, run = [*runs, run], []
        for points in [*runs, run]:
            if points:
                self._parts.append(f'<polyline class="line {kind}" points="{" ".join(points)}"/>')

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str) -> None:
        there = np.isfinite(np.asarray(low, np.float64)) & np.isfinite(np.asarray(high, np.float64))
        xs, lows, highs = (np.asarray(values, np.float64)[there] for values in (x, low, high))
        corners = [*self._pixels(xs, lows), *reversed(list(self._pixels(xs, highs)))]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
        if points:
            self._parts.append(f'<polygon class="band {kind}" points="{points}"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 3.5, said: str = "") -> None:
        [(px, py)] = self._pixels([x], [y])
        title = f"<title>{escape(said)}</title>" if said else ""
        self._parts.append(f'<circle class="dot {kind}" cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}">{title}</circle>')

    def guide(self, x: ArrayLike, y: ArrayLike) -> None:
        """A dotted line that shows what to compare with."""
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in self._pixels(x, y))
        self._parts.append(f'<polyline class="guide" points="{points}"/>')

    def svg(self, said: str) -> str:
        """said: what the chart shows, for readers who do not see it."""
        width, height = self._size
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{"".join(self._parts)}</svg>'
        )

    def _pixels(self, x: ArrayLike, y: ArrayLike) -> Iterable[tuple[float, float]]:
        """Values beyond the axes are drawn at their edge."""
        width, height = self._size
        xs = _share(x, self._x) * (width - _LEFT - _RIGHT) + _LEFT
        ys = height - _BOTTOM - _share(y, self._y) * (height - _TOP - _BOTTOM)
        return zip(xs.tolist(), ys.tolist(), strict=True)

    def _axes(self, labels: tuple[str, str], ticks: int, whole_x: bool) -> None:
        x0, y0, (width, height) = self._x[0], self._y[0], self._size
        for value in _ticks(self._x, ticks, whole_x):
            [(px, _)] = self._pixels([value], [y0])
            self._parts.append(f'<path class="grid" d="M{px:.1f} {_TOP}V{height - _BOTTOM}"/>')
            self._text(px, height - _BOTTOM + 15, _short(value), "tick middle")
        for value in _ticks(self._y, ticks):
            [(_, py)] = self._pixels([x0], [value])
            self._parts.append(f'<path class="grid" d="M{_LEFT} {py:.1f}H{width - _RIGHT}"/>')
            self._text(_LEFT - 6, py + 4, _short(value), "tick end")
        self._parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{height - _BOTTOM}H{width - _RIGHT}"/>')
        self._text((_LEFT + width - _RIGHT) / 2, height - 5, labels[0], "label middle")
        middle = (_TOP + height - _BOTTOM) / 2
        turned = f' transform="rotate(-90 11 {middle:.1f})"'
        self._text(11, middle, labels[1], "label middle", turned)

    def _text(self, x: float, y: float, text: str, kind: str, more: str = "") -> None:
        if text:
            self._parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>')


def _share(values: ArrayLike, ends: tuple[float, float]) -> NDArray[np.float64]:
    low, high = ends
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)


def _ticks(ends: tuple[float, float], wanted: int, whole: bool = False) -> Sequence[float]:
    values = MaxNLocator(wanted, integer=whole).tick_values(*ends)
    return [round(float(v), 12) + 0.0 for v in values if ends[0] - 1e-9 <= v <= ends[1] + 1e-9]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
