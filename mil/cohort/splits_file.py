"""Splits of the user's own: a CSV file like the `splits.csv` of a run, so that another head can be given the same ones.

Columns: slide_id; split (train, val or test); optional repeat and fold (0 without them), and inner (a number from 0, of
the inner part of a training slide, or empty). Others are ignored: who is a patient is said by the slide table. A fold
without val and inner parts gives part of its train for it.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mil.cohort.cohort import Cohort, shown
from tiling.jobs.errors import RequestError
from tiling.manifest import SPLITS, raise_faults
from tiling.slide_ids import in_one_form


def read_parts(path: Path, cohort: Cohort) -> dict[tuple[int, int], dict[str, list[int]]]:
    """Positions of bags in the cohort by (repeat, fold) and split, in order. RequestError with all that is wrong.

    Inner parts stand beside the splits, each under its number as text.
    """
    table = _read(path)
    bags = cohort.bags_of(np.arange(len(cohort.slide_ids))).tolist()
    position = dict(zip(cohort.slide_ids.tolist(), bags, strict=True))
    faults = []
    wrong = sorted(set(table["split"]) - set(SPLITS))
    if wrong:
        faults.append(f"split is {', '.join(map(repr, wrong))}, expected one of {', '.join(SPLITS)}")
    twice = table.loc[table.duplicated(["repeat", "fold", "slide_id"]), "slide_id"].tolist()
    if twice:
        faults.append(f"slides that stand twice in one fold, {shown(twice)}")
    tests = table[table["split"] == "test"]
    again = sorted(set(tests.loc[tests.duplicated(["repeat", "slide_id"]), "slide_id"]))
    if again and not twice:
        faults.append(f"slides tested by two folds of one repeat, {shown(again)}; give each such fold its own repeat")
    unknown = sorted(set(table["slide_id"]) - set(position) - set(cohort.left_out))
    if unknown:
        faults.append(f"slides that the slide table does not have, {shown(unknown)}")
    raise_faults(path, faults)
    parts: dict[tuple[int, int], dict[str, list[int]]] = {}
    columns = ["slide_id", "split", "repeat", "fold", "inner"]
    for slide_id, split, repeat, fold, inner in table[columns].itertuples(index=False):
        of_fold = parts.setdefault((int(repeat), int(fold)), {name: [] for name in SPLITS})
        if slide_id in position:  # what is left out has been said
            of_fold[split].append(position[slide_id])
            if inner:
                of_fold.setdefault(inner, []).append(position[slide_id])
    return {key: {name: sorted(set(rows)) for name, rows in parts[key].items()} for key in sorted(parts)}


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"--splits {path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RequestError(f"--splits {path}: not a CSV file ({error})") from None
    missing = [name for name in ("slide_id", "split") if name not in table]
    if missing:
        raise RequestError(
            f"--splits {path}: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, table.columns))}; "
            "expected slide_id, split, and for several folds repeat and fold, like the splits.csv of a run"
        )
    table["slide_id"] = table["slide_id"].map(in_one_form)
    for name in ("repeat", "fold"):
        column = table[name] if name in table else pd.Series("0", index=table.index)
        if not column.str.fullmatch(r"\d+").all():
            raise RequestError(f"--splits {path}: column {name!r} must hold whole numbers from 0")
        table[name] = column.astype(np.int64)
    if "inner" not in table:
        table["inner"] = ""
    if not table["inner"].str.fullmatch(r"\d*").all() or (table["inner"].ne("") & table["split"].ne("train")).any():
        raise RequestError(f"--splits {path}: column 'inner' must hold whole numbers from 0 for training slides alone")
    return table
