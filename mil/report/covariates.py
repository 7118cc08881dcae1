"""What a report says of a run whose models are told of columns: slide and columns together, and each alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from mil.pages import words
from mil.pages.parts import Cell, Paragraph, Section, Table, number
from mil.tasks.reports.figures import judged
from mil.tasks.task import Task


def covariates_section(task: Task, names: Sequence[str], metrics: Mapping[str, Any]) -> Section:
    """names: of the columns; metrics: of metrics.json."""
    headline, title, told = task.headline, task.figure_title(task.headline), ", ".join(names)
    alone = {
        "the slide alone": ("What the columns add", metrics["against_slide"]),
        f"{told} alone": ("What the slide adds", metrics["against_columns"]),
    }
    rows: list[tuple[Cell, ...]] = [(f"the slide and {told}", number(judged(metrics)[headline]))]
    rows += [(name, number(against[headline])) for name, (_, against) in alone.items()]
    differences = [
        Paragraph(f"{what}: {words.difference_sentence(against, title, name, against[headline]['value'])}.")
        for name, (what, against) in alone.items()
    ]
    explained = (
        "All three have the same folds. The slide alone: the same head, trained without columns. The columns alone: "
        f"{task.baseline.replace('mean features', 'the columns')}. A column adds a linear term to the slide's logits, "
        "learnt with the head; maps are of the slide's part. A difference is paired by slide and drawn by patient."
    )
    table = Table(("", title), tuple(rows))
    return Section("Columns", (table, *differences, Paragraph(explained, soft=True)))
