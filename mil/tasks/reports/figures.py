"""What the reports of all kinds of target share: figures by title, as cards and as one table, and what limits them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mil.pages.parts import Card, Cell, Soft, Table, number
from mil.pages.words import Figure, is_figure

Meanings = Mapping[str, tuple[str, str]]  # name in metrics.json: title, and what it means
_FEW_PATIENTS = 20


def title(name: str, meanings: Meanings) -> str:
    """Of a figure; one that is not known is called by its name."""
    return meanings[name][0] if name in meanings else name.replace("_", " ")


def cards(figures: Mapping[str, Figure], names: Sequence[str], meanings: Meanings) -> list[Card]:
    """The few numbers that matter."""
    return [Card(title(name, meanings), number(figures[name])) for name in names if name in figures]


def judged(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of slides, or of patients where these are the bags."""
    figures: dict[str, Any] = metrics["slide"] or metrics["patient"]
    return figures


def cautions(metrics: Mapping[str, Any]) -> list[str]:
    """What to keep in mind; metrics: of metrics.json."""
    lines = [
        "All intervals draw the patients again and take the models of the folds as they are: how much another training "
        "set, split or seed would change is not in them."
    ]
    if not metrics["slide"]:
        lines.insert(0, "All slides of a patient are one bag: what this page says of slides, it says of patients.")
    counts = metrics["counts"]
    if counts["patients"] < _FEW_PATIENTS:
        lines.append(f"Only {counts['patients']} patients: another cohort can give quite another result.")
    figures = [figure for figure in judged(metrics).values() if is_figure(figure) and figure["low"] is not None]
    if any(figure["low"] == figure["high"] for figure in figures):
        lines.append("An interval without width means that no error of this kind was seen, not that there is none.")
    if counts["repeats"] > 1:
        lines.append(f"Each slide counts once in each of {counts['repeats']} repeats of the cross-validation.")
    if "patient_reason" in metrics:
        lines.append(f"There are no figures by patient: {metrics['patient_reason']}.")
    return lines


def every_figure(metrics: Mapping[str, Any], meanings: Meanings) -> Table:
    """Every overall figure with its interval, by slide and by patient."""
    levels = [(name, metrics[name]) for name in ("slide", "patient") if metrics.get(name)]
    names = [name for name, figure in levels[0][1].items() if is_figure(figure)]
    names.sort(key=lambda name: [*meanings, name].index(name))
    rows: list[tuple[Cell, ...]] = [
        (
            title(name, meanings),
            *(number(level.get(name)) for _, level in levels),
            Soft(meanings.get(name, ("", ""))[1]),
        )
        for name in names
    ]
    return Table(("", *(f"by {name}, 95 % interval" for name, _ in levels), ""), tuple(rows), last_left=True)
