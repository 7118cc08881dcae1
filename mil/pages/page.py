"""What the pages on learning share: their style sheet and their tables."""

from collections.abc import Sequence
from importlib import resources

from tiling.qc.page import page_style


def report_style() -> str:
    """The style sheet of all pages of the house, and that of charts, figures and cards."""
    return page_style() + resources.files("mil.pages").joinpath("report.css").read_text(encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], last_left: bool = False) -> str:
    """A table as HTML. Cells are HTML already; the first column is a heading."""
    last = len(head) - 1

    def kind(i: int) -> str:
        return ' class="left wrap"' if last_left and i == last else ""

    top = "".join(f'<th scope="col"{" class=left" if i == 0 else kind(i)}>{h}</th>' for i, h in enumerate(head))
    body = "".join(
        f'<tr><th scope="row" class="left">{row[0]}</th>'
        + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return f'<div class="sheet fit"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
