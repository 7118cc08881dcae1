"""Numbers in words, the same on terminals and pages. A figure maps value, low and high to numbers or None."""

from collections.abc import Mapping
from typing import Any

Figure = Mapping[str, Any]


def is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def value(figure: Figure | None, digits: int = 3) -> str:
    return "–" if figure is None or figure["value"] is None else _decimal(figure["value"], digits)


def spread(figure: Figure, digits: int = 3) -> str:
    """The interval alone, empty where there is none."""
    if figure["value"] is None:
        return "undefined"
    return "" if figure["low"] is None else f"{_decimal(figure['low'], digits)} – {_decimal(figure['high'], digits)}"


def interval(figure: Figure | None, digits: int = 3, undefined: str = "undefined") -> str:
    """`0.934 (0.880–0.970)`, short enough for a cell."""
    if figure is None or figure["value"] is None:
        return undefined
    ends = "" if figure["low"] is None else f" ({_decimal(figure['low'], digits)}–{_decimal(figure['high'], digits)})"
    return value(figure, digits) + ends


def _decimal(number: float, digits: int) -> str:
    """With so many decimals, two significant digits where these would all be 0, and none from 1,000 on.

    Below one in a million is what rounding leaves of 0.
    """
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    if abs(number) < 1e-6:
        number = 0.0
    return f"{number:.2g}" if 0 < abs(number) < 0.5 * 10.0**-digits else f"{number:.{digits}f}"


def low_to_high(figure: Figure, digits: int = 3, sign: str = "+") -> str:
    """`-0.021 to +0.134`, for differences. sign: `+` shows it always, `-` only where it is negative."""
    return f"{figure['low']:{sign}.{digits}f} to {figure['high']:{sign}.{digits}f}"


def counted(number: int, noun: str) -> str:
    """`1 slide`, `3 slides`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def p_value(p: float | None) -> str:
    if p is None:
        return "p unknown"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def found_sentence(found: Mapping[str, Any]) -> str:
    """What the test of mil.metrics.found says; found: p, found, least_p."""
    if found["p"] is None:
        return "Whether anything was found cannot be tested: no fold has test patients of both labels."
    if found["found"] is None:
        return (
            "Whether anything was found cannot be tested: folds have so few test patients that even a perfect order "
            f"of them would give {p_value(found['least_p'])}. Fewer --folds have more patients each."
        )
    test = f"({p_value(found['p'])}; Mann–Whitney test of the test patients, stratified by fold)"
    if found["found"]:
        return f"Found something: positive test patients stand higher than chance puts them {test}."
    return f"Nothing shown to be found: chance alone may well put the test patients in this order {test}."


def difference_sentence(against: Figure, figure: str, name: str, other: float) -> str:
    """One sentence on a difference of a `figure` with its p values, from the `other` that `name` reached."""
    delong = "" if against.get("p_delong") is None else f"; DeLong {p_value(against['p_delong'])}"
    found = f"{against['value']:+.3f} ({low_to_high(against)}, {p_value(against['p'])}{delong})"
    return f"{figure} {found} against {name} ({other:.3f}) on the same slides"


def seconds(count: float) -> str:
    if count < 100:
        return f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 100 * 60 else f"{count / 3600:.1f} h"
