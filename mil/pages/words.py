"""Numbers in words, the same on terminals and pages. A figure maps value, low and high to numbers or None."""

from collections.abc import Mapping
from typing import Any

Figure = Mapping[str, Any]


def is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def value(figure: Figure | None, digits: int = 3) -> str:
    return "–" if figure is None or figure["value"] is None else f"{figure['value']:.{digits}f}"


def spread(figure: Figure, digits: int = 3) -> str:
    """The interval alone, empty where there is none."""
    if figure["value"] is None:
        return "undefined"
    return "" if figure["low"] is None else f"{figure['low']:.{digits}f} – {figure['high']:.{digits}f}"


def interval(figure: Figure | None, digits: int = 3, undefined: str = "undefined") -> str:
    """`0.934 (0.880–0.970)`, short enough for a cell."""
    if figure is None or figure["value"] is None:
        return undefined
    between = "" if figure["low"] is None else f" ({figure['low']:.{digits}f}–{figure['high']:.{digits}f})"
    return value(figure, digits) + between


def low_to_high(figure: Figure, digits: int = 3, sign: str = "+") -> str:
    """`-0.021 to +0.134`, for differences. sign: `+` shows it always, `-` only where it is negative."""
    return f"{figure['low']:{sign}.{digits}f} to {figure['high']:{sign}.{digits}f}"


def p_value(p: float | None) -> str:
    if p is None:
        return "p unknown"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def difference_sentence(against: Figure, name: str, auroc: float) -> str:
    """One sentence on a difference of AUROCs with its p values, from what `name` reached on the same slides."""
    delong = "" if against["p_delong"] is None else f"; DeLong {p_value(against['p_delong'])}"
    found = f"{against['value']:+.3f} ({low_to_high(against)}, {p_value(against['p'])}{delong})"
    return f"AUROC {found} against {name} ({auroc:.3f}) on the same slides"


def seconds(count: float) -> str:
    if count < 100:
        return f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 100 * 60 else f"{count / 3600:.1f} h"
