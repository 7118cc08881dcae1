"""The tables of a run: splits, histories, predictions, figures, and what is left out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.cohort.cohort import ID_SEPARATOR
from mil.run.checkpoint import fold_folder
from tiling.jobs.atomic import atomic_file, write_json
from tiling.jobs.outcomes import without_folders

_IDS = ("slide_id", "slide_ids", "patient_id", "split", "inner")
_SAID = ("label", "prediction")  # of several targets each has its own, such as `er label`


def write_splits(run: Path, table: pd.DataFrame) -> None:
    write_table(run / "splits.csv", table)


def read_splits(run: Path) -> pd.DataFrame:
    return _read_csv(run / "splits.csv")


def read_history(run: Path, number: int) -> pd.DataFrame:
    return pd.read_csv(fold_folder(run, number) / "history.csv")


def by_member(history: pd.DataFrame) -> list[pd.DataFrame]:
    """The history of each of a fold's models."""
    if "member" not in history:
        return [history]
    extra = [name for name in ("member", "head") if name in history]
    return [own.drop(columns=extra).reset_index(drop=True) for _, own in history.groupby("member")]


def fitted_at_once(history: pd.DataFrame) -> bool:
    """Whether all of a fold's models come of a recipe without epochs."""
    return all(len(own) == 1 and not own["learning_rate"].any() for own in by_member(history))


def kept_epoch(history: pd.DataFrame) -> int:
    """The row of one model's history whose weights the checkpoint holds."""
    losses = history["stop_loss" if "stop_loss" in history else "val_loss"].to_numpy()  # older runs kept the lowest
    return len(losses) - 1 if np.isnan(losses).all() else int(np.nanargmin(losses))


def write_predictions(run: Path, slides: pd.DataFrame, patients: pd.DataFrame) -> None:
    write_table(run / "predictions.csv", slides)
    write_table(run / "predictions_patient.csv", patients)


def write_alone(run: Path, name: str, table: pd.DataFrame) -> None:
    """Predictions by a part of what the run's models are told, `slide` or `columns`."""
    write_table(
        run / f"predictions_{name}_alone.csv", table.sort_values(["repeat", table.columns[0]], ignore_index=True)
    )


def read_predictions(run: Path) -> pd.DataFrame:
    return _read_csv(run / "predictions.csv")


def by_slide(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row for each slide: where rows are patients, each of a patient's slides has what is said of the patient."""
    if "slide_id" in predictions:
        return predictions
    slides = predictions["slide_ids"].str.split(ID_SEPARATOR, regex=False)
    return predictions.assign(slide_id=slides).explode("slide_id", ignore_index=True)


def read_patient_predictions(run: Path) -> pd.DataFrame:
    return _read_csv(run / "predictions_patient.csv")


def write_failures(run: Path, left_out: Mapping[str, str], features: Path) -> None:
    write_reasons(run / "failures.csv", left_out, features)


def write_reasons(path: Path, reasons: Mapping[str, str], features: Path) -> None:
    """slide_id and why it has no prediction; no file where all have one. features: where the slides' files lie."""
    if reasons:
        told = [without_folders(reason, [features]) for reason in reasons.values()]
        write_table(path, pd.DataFrame({"slide_id": list(reasons), "reason": told}))
    else:
        path.unlink(missing_ok=True)


def read_failures(run: Path) -> pd.DataFrame:
    """slide_id and reason; no row if all labelled slides are used."""
    path = run / "failures.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()


def write_metrics(run: Path, metrics: Mapping[str, Any]) -> None:
    """This makes the run complete."""
    write_json(run / "metrics.json", metrics)


def read_metrics(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_csv(path: Path) -> pd.DataFrame:
    """Ids and labels as text: a slide named 007 stays 007, a label NA stays NA. An empty number is NaN."""
    names = pd.read_csv(path, nrows=0).columns.tolist()
    text = [name for name in names if name in _IDS or name.rpartition(" ")[2] in _SAID]
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)
    numbers = table.columns.difference(text)
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
