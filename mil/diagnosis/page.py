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
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import SEVERITIES, Diagnosis, Figure, Finding, Picture
from mil.pages import words
from mil.pages.page import report_style
from tiling.jobs.atomic import write_json, write_text
from tiling.jobs.pages import render

FORMAT, VERSION = "slidemil-diagnosis", 1
_SAID = {"fault": "fault", "look": "look at this", "fine": "fine", "missing": "not looked at"}
_TAG = {"fault": "failed", "look": "", "fine": "good", "missing": "none"}


def write_diagnosis(out: Path, diagnosis: Diagnosis) -> None:
    """Write both files into `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diagnosis.json", diagnosis_json(diagnosis))
    write_text(out / "diagnosis.html", diagnosis_html(diagnosis))


def counts_of(cohort: Cohort) -> dict[str, Any]:
    return {
        "slides": len(cohort.slide_ids),
        "patients": len(set(cohort.patient_ids)),
        "patches": sum(len(features) for features in cohort.features),
        "slides_of_class": dict(zip(cohort.classes, np.bincount(cohort.labels).tolist(), strict=True)),
    }


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": diagnosis.target,
        "encoder": diagnosis.encoder,
        "counts": diagnosis.counts,
        "findings": [_entry(finding) for finding in diagnosis.findings],
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


def diagnosis_html(diagnosis: Diagnosis) -> str:
    counts = diagnosis.counts
    facts = [(f"{counts['slides']:,}", "slides"), (f"{counts['patients']:,}", "patients")]
    facts += [(f"{n:,}", name) for name, n in counts["slides_of_class"].items()]
    facts += [(f"{counts['patches']:,}", "patches"), (str(diagnosis.encoder["encoder"]), "features")]
    return render(
        "mil.diagnosis",
        "diagnosis.html",
        style=Markup(report_style()),
        target=diagnosis.target,
        facts=facts,
        lead=_lead(diagnosis.findings),
        findings=[_shown(finding) for finding in diagnosis.findings],
    )


def _lead(findings: Sequence[Finding]) -> str:
    """How many findings are of each kind, the worst first."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    said = {**_SAID, "fault": "faults" if counts["fault"] > 1 else "fault", "look": "to look at"}
    return ", ".join(f"{n} {said[severity]}" for severity, n in counts.items() if n)


def _shown(of: Finding) -> dict[str, Any]:
    """What the template shows of a finding, beside its own texts and tables."""
    return {
        "of": of,
        "said": _SAID[of.severity],
        "tag": _TAG[of.severity],
        "heading": "What to give" if of.severity == "missing" and not of.error else "What to do",
        "numbers": [(name, *_number(figure)) for name, figure in of.numbers.items()],
        "pictures": [(picture, Markup(picture.svg), _data_uri(picture)) for picture in of.pictures],
    }


def _number(figure: Figure) -> tuple[str, str]:
    """A value, and its interval and p."""
    value, low, high, p = (figure.get(key) for key in ("value", "low", "high", "p"))
    shown = "–" if value is None or not math.isfinite(value) else _short_number(value)
    more = []
    if low is not None and high is not None:
        more.append(f"{_short_number(low)} – {_short_number(high)}")
    elif p is None and value is not None and value == round(value):
        shown = f"{value:,.0f}"  # a count
    if p is not None:
        more.append(words.p_value(p))
    return shown, ", ".join(more)


def _short_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _data_uri(picture: Picture) -> str:
    kind = "png" if picture.image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.image).decode()}" if picture.image else ""
