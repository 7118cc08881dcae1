"""`diagnosis.html` and `diagnosis.json`: all findings, the worst first.

CONTRACT diagnosis.json: format, version, target, encoder (of the features), counts, and `findings`, a list in the order
of the page, each with key, title, severity (fault, look, fine or missing), verdict, remedy, numbers (name → value with
low and high, p, or both; null where undefined), details (title, columns, rows of text), evidence and error (empty
unless the finding failed). The page holds its pictures itself, loads from disk alone and has neither a time nor a path
in it.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mil.diagnosis.finding import SEVERITIES, Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.pages.page import report_style, table
from tiling.jobs.atomic import write_json, write_text

FORMAT, VERSION = "slidemil-diagnosis", 1
_SAID = {"fault": "fault", "look": "look at this", "fine": "fine", "missing": "not looked at"}
_TAG = {"fault": "failed", "look": "", "fine": "good", "missing": "none"}


def write_diagnosis(out: Path, inputs: Inputs, findings: Sequence[Finding]) -> None:
    """Write both files into `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diagnosis.json", diagnosis_json(inputs, findings))
    write_text(out / "diagnosis.html", diagnosis_html(inputs, findings))


def diagnosis_json(inputs: Inputs, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": inputs.target,
        "encoder": inputs.cohort.encoder,
        "counts": _counts(inputs),
        "findings": [_entry(finding) for finding in findings],
    }


def _entry(of: Finding) -> dict[str, Any]:
    plain = {name: getattr(of, name) for name in ("key", "title", "severity", "verdict", "remedy", "error")}
    details = [vars(part) for part in of.details]
    return _json({**plain, "numbers": of.numbers, "details": details, "evidence": of.evidence})  # type: ignore[no-any-return]


def _json(value: Any) -> Any:
    """Plain JSON values: numpy's numbers and arrays too, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def diagnosis_html(inputs: Inputs, findings: Sequence[Finding]) -> str:
    counts = _counts(inputs)
    facts = [(f"{counts['slides']:,}", "slides"), (f"{counts['patients']:,}", "patients")]
    facts += [(f"{n:,}", name) for name, n in counts["slides_of_class"].items()]
    facts += [(f"{counts['patches']:,}", "patches"), (str(inputs.cohort.encoder["encoder"]), "features")]
    filled = {
        "STYLE": report_style(),
        "TITLE": f"Diagnosis of {escape(inputs.target)}",
        "SUMMARY": "".join(f"<li><b>{escape(value)}</b> {escape(name)}</li>" for value, name in facts),
        "SHORT": _short(findings),
        "BODY": "".join(_section(finding) for finding in findings),
    }
    page = resources.files("mil.diagnosis").joinpath("diagnosis.html").read_text(encoding="utf-8")
    for name, text in filled.items():
        page = page.replace(f"__{name}__", text)
    return page


def _counts(inputs: Inputs) -> dict[str, Any]:
    cohort = inputs.cohort
    return {
        "slides": len(cohort.slide_ids),
        "patients": len(set(cohort.patient_ids)),
        "patches": sum(len(features) for features in cohort.features),
        "slides_of_class": dict(zip(cohort.classes, np.bincount(cohort.labels).tolist(), strict=True)),
    }


def _short(findings: Sequence[Finding]) -> str:
    """The whole diagnosis in one list, the worst first."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    said = {**_SAID, "fault": "faults" if counts["fault"] > 1 else "fault", "look": "to look at"}
    lead = ", ".join(f"{n} {said[severity]}" for severity, n in counts.items() if n)
    rows = "".join(
        f'<li>{_tag(f)}<div><a href="#{f.key}">{escape(f.title)}</a><p>{escape(f.verdict)}</p></div></li>'
        for f in findings
    )
    return f'<p class="verdict">{escape(lead)}</p><ul class="short">{rows}</ul>'


def _section(of: Finding) -> str:
    numbers = "".join(_number(name, figure) for name, figure in of.numbers.items())
    heading = "What to give" if of.severity == "missing" and not of.error else "What to do"
    parts = [
        f"<h2>{escape(of.title)} {_tag(of)}</h2>",
        f'<p class="verdict">{escape(of.verdict)}</p>',
        f'<p class="remedy"><b>{heading}.</b> {escape(of.remedy)}</p>',
        f'<div class="numbers">{numbers}</div>' if numbers else "",
        f'<div class="figures">{"".join(map(_picture, of.pictures))}</div>' if of.pictures else "",
        *map(_details, of.details),
    ]
    return f'<section id="{of.key}" class="{of.severity}">{"".join(parts)}</section>'


def _tag(of: Finding) -> str:
    return f'<span class="tag {_TAG[of.severity]}">{_SAID[of.severity]}</span>'


def _number(name: str, figure: Figure) -> str:
    value, low, high, p = (figure.get(key) for key in ("value", "low", "high", "p"))
    shown = "–" if value is None or not math.isfinite(value) else _short_number(value)
    more = []
    if low is not None and high is not None:
        more.append(f"{_short_number(low)} – {_short_number(high)}")
    elif p is None and value is not None and value == round(value):
        shown = f"{value:,.0f}"  # a count
    if p is not None:
        more.append("p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}")
    return f'<div class="number"><span>{escape(name)}</span><b>{shown}</b><span>{", ".join(more)}</span></div>'


def _short_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _picture(picture: Picture) -> str:
    shown = picture.svg
    if picture.image:
        kind = "png" if picture.image.startswith(b"\x89PNG") else "jpeg"
        data = base64.b64encode(picture.image).decode()
        shown = f'<img src="data:image/{kind};base64,{data}" alt="{escape(picture.title)}">'
    wide = ' class="wide-figure"' if picture.wide else ""
    return (
        f"<figure{wide}><figcaption><b>{escape(picture.title)}</b></figcaption>{shown}"
        f"<p>{escape(picture.caption)}</p></figure>"
    )


def _details(part: Details) -> str:
    rows = [[escape(cell) for cell in row] for row in part.rows]
    shown = table([escape(name) for name in part.columns], rows)
    return f"<details><summary>{escape(part.title)}</summary>{shown}</details>"
