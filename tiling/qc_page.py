"""`qc.html`: all slides of an output folder on one page that loads from disk alone, the suspicious ones first."""

import csv
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tiling.artifact import Locked, lock, write_text
from tiling.qc_picture import qc_folder, read_facts

# Each rule: what it is called, and when it speaks.
RULES = {
    "failed": "the slide could not be tiled",
    "no patch": "no patch was kept",
    "no tissue": "less than 0.1 % of the slide is tissue",
    "all tissue": "more than 95 % of the slide is tissue, though tissue was looked for",
    "blurred": "the log of the median sharpness is more than 3.5 robust standard deviations below the cohort's",
    "pen": "pen takes more than 5 % of what is tissue or pen",
    "odd scale": "fewer than one slide in five has a scale within 10 % of this one, or the scale is unknown",
    "few patches": "less than a tenth of the cohort's median",
}
_PATIENCE_S = 60
_ENOUGH = 8  # slides, before one is compared with the others


def write_qc_page(out: Path) -> None:
    """Write `out/qc.html` from all facts in `out/qc` and the failures of all parts of the job.

    Parts of an array job that end together wait for each other, so that the last page has the slides of all.
    """
    for _ in range(_PATIENCE_S):
        with suppress(Locked), lock(out / "qc.html"):
            return _write_page(out)
        time.sleep(1)


def _write_page(out: Path) -> None:
    facts = [read_facts(path) for path in sorted(qc_folder(out).glob("*.json"))]
    slides = judge([f for f in facts if f], _failures(out))
    data = json.dumps({"slides": slides, "rules": RULES}, ensure_ascii=False).replace("<", "\\u003c")
    template = resources.files("tiling").joinpath("qc_page.html").read_text(encoding="utf-8")
    write_text(out / "qc.html", template.replace("/*DATA*/null", data))


def judge(facts: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """Facts with `warnings` (names of RULES) and the `reason` of failures; suspicious slides first, then by name."""
    # A slide that failed in this run may have a picture of an earlier one: the failure counts.
    slides = [dict(f) for f in facts if f["slide_id"] not in failures]
    blurred = _blurred([f["median_sharpness"] for f in slides])
    scales = np.array([f["mpp_l0"] or np.nan for f in slides])
    median_patches = np.median([f["patches"] for f in slides]) if slides else 0
    many = len(slides) >= _ENOUGH
    for slide, is_blurred in zip(slides, blurred, strict=True):
        tissue, pen, scale = slide["tissue_share"], slide["pen_share"], slide["mpp_l0"]
        alike = 1.0 if scale is None else float((np.abs(scales / scale - 1) <= 0.1).mean())
        speaks = {
            "no patch": slide["patches"] == 0,
            "no tissue": tissue < 0.001,
            "all tissue": tissue > 0.95 and slide["tissue_method"] != "all",
            "blurred": many and is_blurred,
            "pen": pen > 0.05 * (tissue + pen) if slide["tissue_method"] != "all" else pen > 0.05,
            "odd scale": scale is None or (many and alike < 0.2),
            "few patches": many and 0 < slide["patches"] < median_patches / 10,
        }
        slide["warnings"] = [name for name, spoken in speaks.items() if spoken]
    slides += [{"slide_id": n, "warnings": ["failed"], "reason": _without_folders(r)} for n, r in failures.items()]
    order = list(RULES)
    return sorted(
        slides,
        key=lambda s: (min((order.index(w) for w in s["warnings"]), default=99), -len(s["warnings"]), s["slide_id"]),
    )


def _blurred(sharpness: Sequence[float | None]) -> list[bool]:
    logs = np.log([np.nan if value is None else max(value, 1e-6) for value in sharpness])
    if not len(logs) or np.isnan(logs).all():
        return [False] * len(logs)
    middle = np.nanmedian(logs)
    spread = max(1.4826 * np.nanmedian(np.abs(logs - middle)), 0.1)
    return [bool(z < -3.5) for z in (logs - middle) / spread]


def _failures(out: Path) -> dict[str, str]:
    """slide_id → reason, of this job and of the other parts of an array job."""
    reasons = {}
    for path in sorted(out.glob("failures*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reasons.update({row["slide_id"]: row["reason"] for row in csv.DictReader(file)})
    return reasons


def _without_folders(reason: str) -> str:
    """Folders of a lab may carry patients' names; the file's own name stays."""
    return re.sub(r"(?<![\w.])/(?:[^/\n]*?/)*(?=[^/\s])", "", reason)
