"""What a section of a page holds, as data: texts and numbers that a page draws, one macro of parts.html a kind.

All text is plain and is escaped where it is drawn. A part that is markup already is drawn as it is.
"""

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from mil.pages import words
from mil.pages.chart import Chart

Key = tuple[tuple[str, str], ...]  # colour (c0 to c5) and what it stands for


@dataclass(frozen=True)
class Tag:
    """A judgement in a word or two. kind: empty for what is worth a look."""

    text: str
    kind: Literal["", "good", "failed"] = ""


@dataclass(frozen=True)
class Number:
    """A cell or card: the value stands out, its interval stands beside it."""

    value: str
    spread: str = ""


@dataclass(frozen=True)
class Soft:
    """A cell with a remark."""

    text: str


Cell = str | Number | Soft | Tag | Markup


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    """The names of colours, if any, stand before the text."""

    text: str
    soft: bool = False
    key: Key = ()


@dataclass(frozen=True)
class Verdict:
    """A line that stands out: a text and a judgement."""

    text: str
    tag: Tag


@dataclass(frozen=True)
class Points:
    """A list of judgements with their reasons."""

    items: tuple[tuple[Tag, str], ...]


@dataclass(frozen=True)
class Card:
    title: str
    number: Number


@dataclass(frozen=True)
class Cards:
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Picture:
    """A chart with its title and caption.

    said: what it shows, for readers who do not see it. name: of its files, without ending.
    """

    chart: Chart
    said: str
    title: str
    caption: str
    name: str
    key: Key = ()
    tag: Tag | None = None


@dataclass(frozen=True)
class Figures:
    """Charts side by side."""

    pictures: tuple[Picture, ...]
    small: bool = False


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its heading. last_left: the last column holds text that wraps."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    last_left: bool = False


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts and shares of the row, by label (rows) and prediction (columns)."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Blocks:
    """Lists of names and values side by side, each under its title."""

    blocks: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Tabs:
    """Sections of which one group is shown at a time; all are printed."""

    tabs: tuple[tuple[str, tuple["Section", ...]], ...]  # title and sections of each


Part = Heading | Paragraph | Verdict | Points | Cards | Figures | Table | Matrix | Blocks | Tabs | Markup


@dataclass(frozen=True)
class Section:
    title: str
    parts: tuple[Part, ...]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(picture for part in self.parts for picture in _pictures(part))


def _pictures(part: Part) -> tuple[Picture, ...]:
    if isinstance(part, Tabs):
        return tuple(picture for _, sections in part.tabs for section in sections for picture in section.pictures)
    return part.pictures if isinstance(part, Figures) else ()


def number(figure: words.Figure | None) -> Number:
    """A figure of metrics.json as a cell."""
    return Number(words.value(figure), "" if figure is None else words.spread(figure))
