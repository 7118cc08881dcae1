"""Line charts, drawn by matplotlib: as SVG text for a page, as PNG and PDF for a paper.

A chart is data until it is drawn. On a page its colours are those of the page's style sheet, so they are right in dark
and light; in files they are those of the light page, on white. The same data give the same bytes, and matplotlib's
settings stay as they were.

What is drawn is of a `kind`: `c0` to `c5` for the colour, and then `thin` for a thin line.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from mil.pages.inline_svg import Circle, inline_svg
from tiling.jobs.atomic import atomic_file

COLOURS = 6
LIGHT = {  # the style sheet's variables on a light page; c0 to c5 are told apart by colour-blind readers
    **{"c0": "#0072b2", "c1": "#c94f00", "c2": "#00845f", "c3": "#b0568f", "c4": "#a87400", "c5": "#3f8fc4"},
    **{"soft": "#5a6470", "line": "#dde1e6", "sheet": "#ffffff"},
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 38  # px around the axes
_PER_INCH = 72  # units of matplotlib's SVG; one of them is one CSS pixel
_FILE_DPI = 200
_TICK_SIZE, _LABEL_SIZE = 11, 12
_STYLE = {
    "font.size": _TICK_SIZE,
    "text.color": LIGHT["soft"],
    "text.parse_math": False,  # a label may hold a dollar sign
    "lines.solid_capstyle": "butt",
    "legend.fontsize": 9,
    "legend.edgecolor": LIGHT["line"],
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text that can be edited; journals refuse matplotlib's own choice
}

Floats = NDArray[np.float64]


class _Mark(Protocol):
    def draw(self, axes: Axes, gid: str) -> None: ...


@dataclass(frozen=True)
class _Line:
    x: Floats
    y: Floats
    kind: str
    named: str

    def draw(self, axes: Axes, gid: str) -> None:
        colour, *more = self.kind.split()
        width = 1.3 if "thin" in more else 2
        axes.plot(self.x, self.y, color=LIGHT[colour], linewidth=width, clip_on=False, label=self.named or None)


@dataclass(frozen=True)
class _Band:
    x: Floats
    low: Floats
    high: Floats
    kind: str

    def draw(self, axes: Axes, gid: str) -> None:
        corners = (np.append(self.x, self.x[::-1]), np.append(self.low, self.high[::-1]))
        axes.fill(*corners, color=LIGHT[self.kind], alpha=0.17, linewidth=0, clip_on=False, zorder=2)


@dataclass(frozen=True)
class _Dot:
    x: Floats
    y: Floats
    kind: str
    radius: float
    said: str

    def draw(self, axes: Axes, gid: str) -> None:
        [dot] = axes.plot(self.x, self.y, "o", color=LIGHT[self.kind], markersize=2 * self.radius, clip_on=False)
        dot.set(markeredgecolor=LIGHT["sheet"], gid=gid)


@dataclass(frozen=True)
class _Guide:
    x: Floats
    y: Floats

    def draw(self, axes: Axes, gid: str) -> None:
        axes.plot(self.x, self.y, color=LIGHT["soft"], linewidth=1, linestyle=(0, (2, 4)), clip_on=False)


class Chart:
    """One pair of axes. `x` and `y` are the data's ends, `size` is (width, height) in CSS pixels.

    Values beyond the ends are drawn at their edge.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        size: tuple[int, int] = (380, 340),
        labels: tuple[str, str] = ("", ""),
        ticks: int = 5,
        whole_x: bool = False,
    ) -> None:
        self._ends, self._size, self._ticks, self._whole_x = (x, y), size, ticks, whole_x
        self._labels = tuple(_printable(label) for label in labels)
        self._marks: list[_Mark] = []

    def line(self, x: ArrayLike, y: ArrayLike, kind: str, named: str = "") -> None:
        """A line through the points, broken where y is not a number. named: what a file's legend calls it."""
        self._marks.append(_Line(self._x(x), self._y(y), kind, _printable(named)))

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str) -> None:
        there = np.isfinite(np.asarray(low, np.float64)) & np.isfinite(np.asarray(high, np.float64))
        if there.any():
            self._marks.append(_Band(self._x(x)[there], self._y(low)[there], self._y(high)[there], kind))

    def dot(self, x: float, y: float, kind: str, radius: float = 3.5, said: str = "") -> None:
        """said: what a page shows where a pointer rests on the dot."""
        self._marks.append(_Dot(self._x([x]), self._y([y]), kind, radius, said))

    def guide(self, x: ArrayLike, y: ArrayLike) -> None:
        """A dotted line that shows what to compare with."""
        self._marks.append(_Guide(self._x(x), self._y(y)))

    def svg(self, said: str) -> str:
        """An element to stand in a page. said: what the chart shows, for readers who do not see it."""
        text = io.StringIO()
        with style.context(["default", _STYLE]):
            self._figure(on_white=False).savefig(text, format="svg", metadata={"Date": None})
        circles = {f"mark-{i}": Circle(m.radius, m.said) for i, m in enumerate(self._marks) if isinstance(m, _Dot)}
        return inline_svg(text.getvalue(), said, {colour: f"var(--{name})" for name, colour in LIGHT.items()}, circles)

    def save(self, path: Path) -> None:
        """Write `path` with the endings .png and .pdf, each whole or not at all."""
        with style.context(["default", _STYLE]):
            figure = self._figure(on_white=True)
            if any(isinstance(mark, _Line) and mark.named for mark in self._marks):
                figure.axes[0].legend(loc="best")
            for ending, undated in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                with atomic_file(path.with_name(f"{path.name}.{ending}")) as temporary:
                    figure.savefig(temporary, format=ending, dpi=_FILE_DPI, metadata=undated)

    def _figure(self, on_white: bool) -> Figure:
        width, height = self._size
        figure = Figure((width / _PER_INCH, height / _PER_INCH), dpi=_PER_INCH)
        inner = (width - _LEFT - _RIGHT, height - _TOP - _BOTTOM)
        axes = figure.add_axes((_LEFT / width, _BOTTOM / height, inner[0] / width, inner[1] / height))
        axes.set(xlim=self._ends[0], ylim=self._ends[1])
        for background in (figure.patch, axes.patch):
            background.set_visible(on_white)
        self._draw_axes(axes)
        middle = ((_LEFT + inner[0] / 2) / width, (_BOTTOM + inner[1] / 2) / height)
        place: dict[str, Any] = dict(ha="center", va="baseline", rotation_mode="anchor", size=_LABEL_SIZE)
        figure.text(middle[0], 5 / height, self._labels[0], **place)
        figure.text(11 / width, middle[1], self._labels[1], rotation=90, **place)
        for i, mark in enumerate(self._marks):
            mark.draw(axes, f"mark-{i}")
        return figure

    def _draw_axes(self, axes: Axes) -> None:
        axes.set_axisbelow(True)
        axes.grid(color=LIGHT["line"], linewidth=1)
        axes.tick_params(length=0, labelcolor=LIGHT["soft"], labelsize=_TICK_SIZE)
        axes.tick_params("x", pad=4)
        axes.tick_params("y", pad=6)
        axes.xaxis.set_major_locator(MaxNLocator(self._ticks, integer=self._whole_x))
        axes.yaxis.set_major_locator(MaxNLocator(self._ticks))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_short))
        for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
            line.set_clip_on(False)
        for side, spine in axes.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=LIGHT["soft"], linewidth=1, zorder=1)

    def _x(self, values: ArrayLike) -> Floats:
        return np.clip(np.asarray(values, np.float64), *self._ends[0])

    def _y(self, values: ArrayLike) -> Floats:
        return np.clip(np.asarray(values, np.float64), *self._ends[1])


def _short(value: float, _: int) -> str:
    value = round(float(value), 12) + 0.0
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _printable(text: str) -> str:
    """Without line breaks and control characters, which SVG cannot hold."""
    return "".join(character for character in text if character.isprintable())
