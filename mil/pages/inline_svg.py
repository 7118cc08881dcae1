"""matplotlib's SVG as an element that may stand in a page beside others: small, without ids, coloured by the page.

Its file would bring a style for all elements of the page, ids that another chart has too, fonts and fixed colours.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_KEPT = {"path": ("d", "style"), "text": ("x", "y", "transform", "style")}
_NO_STYLE = {"font-family", "stroke-linejoin", "stroke-dashoffset"}  # the page's, the root's, always 0
_UPRIGHT = re.compile(r"rotate\(-?0 ")
_DECIMALS = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Circle:
    """A marker of one point. `said`, if any, is what it shows where a pointer rests on it."""

    radius: float
    said: str


def inline_svg(drawn: str, said: str, colours: Mapping[str, str], circles: Mapping[str, Circle]) -> str:
    """drawn: what matplotlib wrote, with circles under these group ids. colours: of matplotlib → of the page."""
    source = ElementTree.fromstring(drawn)
    root = Element("svg", {"viewBox": source.attrib["viewBox"], "role": "img", "aria-label": said})
    root.set("stroke-linejoin", "round")
    root.extend(_leaves(source, colours, circles))
    return ElementTree.tostring(root, encoding="unicode")


def _leaves(parent: Element, colours: Mapping[str, str], circles: Mapping[str, Circle]) -> Iterable[Element]:
    """What is seen, in its order, out of its groups."""
    for child in parent:
        name = child.tag.removeprefix(_NAMESPACE)
        if name == "g" and child.get("id") in circles:
            yield from _circles(child, colours, circles[child.attrib["id"]])
        elif name == "g":
            yield from _leaves(child, colours, circles)
        elif name in _KEPT:
            yield _leaf(child, name, colours)


def _leaf(source: Element, name: str, colours: Mapping[str, str]) -> Element:
    leaf = Element(name, {key: source.attrib[key] for key in _KEPT[name] if key in source.attrib})
    leaf.text = source.text
    leaf.set("style", _style(source, colours))
    for key in ("d", "x", "y", "transform"):
        if key in leaf.attrib:
            leaf.set(key, _DECIMALS.sub(_one_decimal, " ".join(leaf.attrib[key].split())))
    if _UPRIGHT.match(leaf.get("transform", "")):
        del leaf.attrib["transform"]
    return leaf


def _circles(group: Element, colours: Mapping[str, str], circle: Circle) -> Iterable[Element]:
    for use in group.iter(f"{_NAMESPACE}use"):
        place = {f"c{axis}": _DECIMALS.sub(_one_decimal, use.attrib[axis]) for axis in "xy"}
        leaf = Element("circle", {**place, "r": f"{circle.radius:.1f}", "style": _style(use, colours)})
        if circle.said:
            ElementTree.SubElement(leaf, "title").text = circle.said
        yield leaf


def _style(source: Element, colours: Mapping[str, str]) -> str:
    rules = [rule.split(": ", 1) for rule in source.get("style", "").split("; ") if rule]
    return ";".join(f"{name}:{colours.get(value, value)}" for name, value in rules if name not in _NO_STYLE)


def _one_decimal(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
