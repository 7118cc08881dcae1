"""Columns of the slide table that a model is given beside the picture, such as age, sex and stage.

A column whose values are all numbers is taken as numbers, any other as categories. A value is missing where the cell
is empty or says NA, N/A, NaN, null or none; each column has an indicator of that. What depends on a choice of slides
(which categories count, by what numbers are standardised, what stands for a missing one) is an `encoding`, fitted to
the training slides of one model alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow

Floats = NDArray[np.float64]
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_NUMBERS = "numbers"  # in provenance, in the place of categories
_MOST_CATEGORIES = 20
_CONSTANT = 1e-9  # standard deviation, relative to the size of the numbers


@dataclass(frozen=True)
class Column:
    name: str
    categories: tuple[str, ...]  # sorted; empty for a column of numbers

    @property
    def width(self) -> int:
        """The number, or one for each category, and then whether the value is missing."""
        return 1 + (len(self.categories) or 1)


@dataclass(frozen=True)
class Columns:
    """What a run knows of its columns: K numbers a slide in all. `columns` are sorted by name."""

    columns: tuple[Column, ...]

    @classmethod
    def found(cls, rows: Sequence[SlideRow], names: Sequence[str]) -> Self:
        """The kinds of columns, by the values in the rows. ValueError with all faults, a line each."""
        present = [name for name in names if name in rows[0].labels]
        faults = [
            f"--covariates: no column {name!r}; the columns are {', '.join(map(repr, rows[0].labels)) or 'none'}"
            for name in names
            if name not in present
        ]
        columns = []
        for name in sorted(present):
            values = {value for row in rows if not _is_missing(value := row.labels[name])}
            numbers = {value for value in values if _is_number(value)}
            categories = () if numbers == values else tuple(sorted(values))
            columns.append(Column(name, categories))
            if len(values) < 2:
                faults.append(f"--covariates: {name} is the same in all slides with features; leave it out")
            elif 2 * len(numbers) > len(values) > len(numbers):
                faults += _not_numbers(rows, name)
            elif len(categories) > _MOST_CATEGORIES:
                faults.append(
                    f"--covariates: {name} has {len(categories)} different texts, such as {categories[0]!r}; "
                    f"more than {_MOST_CATEGORIES} are no categories"
                )
        if faults:
            raise ValueError("\n".join(faults))
        return cls(tuple(columns))

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Self:
        """From what `described` gave."""
        return cls(tuple(Column(n, () if c == _NUMBERS else tuple(c)) for n, c in sorted(described.items())))

    def described(self) -> dict[str, Any]:
        """For provenance.json: the categories of each column, or that it holds numbers."""
        return {column.name: list(column.categories) or _NUMBERS for column in self.columns}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def width(self) -> int:
        """K"""
        return sum(column.width for column in self.columns)

    def read(self, rows: Sequence[SlideRow]) -> tuple[Floats, list[str]]:
        """(S, K) numbers as they stand, 0 where they are missing, and 0 or 1 of categories and indicators.

        Then a warning for each category that is none of the column's, which counts as missing. RequestError where a
        column is not there, or numbers are none.
        """
        absent = [name for name in self.names if rows and name not in rows[0].labels]
        if absent:
            raise RequestError(
                f"the run was trained with the columns {', '.join(self.names)}, and the slide table has no "
                f"{', '.join(map(repr, absent))}; add the column, with empty cells where a value is not known"
            )
        faults = [line for column in self.columns if not column.categories for line in _not_numbers(rows, column.name)]
        if faults:
            raise RequestError("\n  ".join(faults))
        blocks = [_block(column, [row.labels[column.name] for row in rows]) for column in self.columns]
        return np.hstack(blocks), [line for column in self.columns for line in _unknown(column, rows)]

    def encoding(self, values: Floats) -> tuple[Floats, Floats]:
        """By the values (n, K) of training slides: (K, K) and (K,), such that values @ the first + the second are
        standardised over these slides.

        A missing number stands at their mean. A category that none of them has counts as missing; where none of them
        lacks a value, a missing category stands at their mean too. What is the same in all of them becomes 0.
        """
        into, start = np.eye(values.shape[1]), 0
        for column in self.columns:
            own, missing = slice(start, start + column.width - 1), start + column.width - 1
            known = values[values[:, missing] == 0]
            mean = known[:, own].mean(axis=0) if len(known) else np.zeros(column.width - 1)
            lacking = np.append(mean, 1.0)
            if column.categories and len(known) < len(values):
                lacking[:-1] = 0
            into[missing, start : missing + 1] = lacking
            if column.categories:
                into[start:missing][mean == 0, start : missing + 1] = lacking
            start = missing + 1
        turned = values @ into
        mean, deviation = turned.mean(axis=0), turned.std(axis=0)
        varies = deviation > _CONSTANT * np.maximum(1, np.abs(mean))
        scale = np.divide(1, deviation, out=np.zeros(len(mean)), where=varies)
        return into * scale, -mean * scale


@dataclass(frozen=True)
class Covariates:
    """The columns of a cohort's S slides."""

    columns: Columns
    values: Floats  # (S, K), see Columns.read

    def encoded(self, by: NDArray[np.int64]) -> Floats:
        """(S, K) by the encoding of the slides at these positions."""
        into, shift = self.columns.encoding(self.values[by])
        return np.asarray(self.values @ into + shift)


def read_covariates(rows: Sequence[SlideRow], names: Sequence[str]) -> Covariates | None:
    """Of S rows; None where no name is given. ValueError with all faults, a line each."""
    if not names:
        return None
    columns = Columns.found(rows, names)
    return Covariates(columns, columns.read(rows)[0])


def _is_missing(value: str) -> bool:
    return value.lower() in _MISSING


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _block(column: Column, texts: Sequence[str]) -> Floats:
    """(S, width)"""
    if column.categories:
        told = np.array([[text == name for name in column.categories] for text in texts], np.float64)
    else:
        told = np.array([[0.0 if _is_missing(text) else float(text)] for text in texts])
    missing = ~told.any(axis=1) if column.categories else np.array([_is_missing(text) for text in texts])
    return np.column_stack([told, missing])


def _not_numbers(rows: Sequence[SlideRow], name: str) -> list[str]:
    """A line for each row that has another text than a number."""
    return [
        f"row {row.number}: {name} is {value!r}, expected a number such as 63, or nothing where it is not known"
        for row in sorted(rows, key=lambda row: row.number)
        if not _is_missing(value := row.labels[name]) and not _is_number(value)
    ]


def _unknown(column: Column, rows: Sequence[SlideRow]) -> list[str]:
    texts = {row.labels[column.name] for row in rows}
    unknown = sorted(t for t in texts if not _is_missing(t) and t not in column.categories) if column.categories else []
    return [
        f"{column.name} {', '.join(map(repr, unknown))} was in no slide that the run was trained on and counts as "
        f"missing; known are {', '.join(column.categories)}"
    ] * bool(unknown)
