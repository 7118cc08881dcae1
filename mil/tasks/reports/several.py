"""What a report says of several targets: one line on each, then a tab with all that a run on it alone would say."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mil.metrics.bootstrap import Bootstrap
from mil.pages import words
from mil.pages.parts import Card, Cards, Cell, Figures, Paragraph, Part, Section, Soft, Table, Tabs, number
from mil.tasks.reports.figures import judged

_NOTES = (
    "The targets share a model and its folds; each has a loss, a calibration and figures of its own, which are of "
    "the slides that have its label.",
    "Whether anything was found is tested for each target, p values corrected for their number (Holm).",
)


@dataclass(frozen=True)
class OfTarget:
    """One of them, as its own kind tells it."""

    name: str
    sections: Callable[[Mapping[str, Any], pd.DataFrame, Bootstrap], Sequence[Section]]
    predictions: pd.DataFrame  # of the slides that have its label


def several_sections(each: Sequence[OfTarget], metrics: Mapping[str, Any], bootstrap: Bootstrap) -> list[Section]:
    """The result in short first, then the tabs. metrics: of metrics.json."""
    of_all = judged(metrics)
    cards = [Card("AUROC, mean of targets", number(of_all["auroc"]))]
    cards += [Card(f"AUROC, {of.name}", number(of_all[f"{of.name} auroc"])) for of in each]
    tabs = tuple((of.name, _tab(at, of, metrics, bootstrap)) for at, of in enumerate(each, 1))
    notes = [Paragraph(note, soft=True) for note in _NOTES]
    return [
        Section("Result", (Cards(tuple(cards)), _overview(each, metrics), *notes)),
        Section("Targets", (Tabs(tabs),)),
    ]


def _overview(each: Sequence[OfTarget], metrics: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for of in each:
        counts, against = metrics["counts"]["slides_of_target"][of.name], metrics["against_mean"]["targets"][of.name]
        slides = ", ".join(f"{name} {count}" for name, count in counts.items())
        shown = [number(judged(metrics)[f"{of.name} {figure}"]) for figure in ("auroc", "balanced_accuracy")]
        gain = Soft(f"{against['value']:+.3f} ({words.low_to_high(against)}, {words.p_value(against['p'])})")
        rows.append((of.name, slides, *shown, number(against["auroc"]), gain))
    head = ("", "slides with a label", "AUROC", "balanced accuracy", "AUROC of the mean patch", "difference of the two")
    return Table(head, tuple(rows))


def _tab(at: int, of: OfTarget, metrics: Mapping[str, Any], bootstrap: Bootstrap) -> tuple[Section, ...]:
    """at: its place, with which the names of chart files begin."""
    prefix = f"{at}-{re.sub(r'[^A-Za-z0-9_-]+', '-', of.name)}-"
    sections = of.sections(_metrics_of(of, metrics), of.predictions, bootstrap)
    return tuple(replace(section, parts=tuple(_named(part, prefix) for part in section.parts)) for section in sections)


def _named(part: Part, prefix: str) -> Part:
    if not isinstance(part, Figures):
        return part
    return replace(part, pictures=tuple(replace(of, name=prefix + of.name) for of in part.pictures))


def _metrics_of(of: OfTarget, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As a run on it alone would have them."""
    levels = {level: _figures_of(of.name, metrics[level]) for level in ("slide", "patient")}
    counts = {**metrics["counts"], "patients": of.predictions["patient_id"].nunique()}
    found = {"found": own} if (own := metrics.get("found", {}).get(of.name)) else {}
    reason = {key: metrics[key] for key in ("patient_reason",) if key in metrics}
    return {**levels, "counts": counts, **found, **reason}


def _figures_of(name: str, level: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if level is None:
        return None
    split = {key: key.rpartition(" ") for key in level}
    return {figure: level[key] for key, (target, _, figure) in split.items() if target == name}
