"""Columns of numbers: read with the rows that hold none, and written so that they are read as the same."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil.metrics.bootstrap import Floats
from tiling.manifest import SlideRow


def read_numbers(rows: Sequence[SlideRow], column: str) -> tuple[Floats, list[str]]:
    """(S,) numbers in a column, and a line for each row that has none, in the table's order."""
    texts = pd.Series([row.labels[column] for row in rows])
    numbers = np.array(pd.to_numeric(texts, errors="coerce"), np.float64)
    bad = [row for row, number in zip(rows, numbers, strict=True) if not math.isfinite(number)]
    return numbers, [
        f"row {row.number}: {column} is {row.labels[column]!r}, expected a number such as 0.35"
        for row in sorted(bad, key=lambda row: row.number)
    ]


def number_text(number: float) -> str:
    """The shortest that is read as the same number."""
    return repr(float(number)).removesuffix(".0")
