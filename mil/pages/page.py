"""What the pages on learning share: their style sheet, and how their parts are drawn."""

from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from mil.pages.parts import Section, Table
from tiling.jobs.pages import environment, render
from tiling.qc.page import page_style


def report_style() -> Markup:
    """The style sheet of all pages of the house, and that of charts, figures and cards."""
    return Markup(page_style() + resources.files("mil.pages").joinpath("report.css").read_text(encoding="utf-8"))


def draw_sections(sections: Sequence[Section]) -> Markup:
    return Markup(render("mil.pages", "sections.html", sections=sections))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], last_left: bool = False) -> Markup:
    """A table as HTML, its cells and headings being HTML already; the first column is a heading."""
    marked = Table(tuple(map(Markup, head)), tuple(tuple(map(Markup, row)) for row in rows), last_left)
    draw = environment("mil.pages").get_template("parts.html").module.draw  # type: ignore[attr-defined]
    return Markup(draw["Table"](marked))
