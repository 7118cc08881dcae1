"""`qc.html`: all slides of an output folder on one page that loads from disk alone, the suspicious ones first.

It is made of `qc/*.json` and of the failures of every job that shared the folder, and has no date in it: the same
slides give the same page. Its head has the digest of what it was made of, this room's own files included; where that
has not changed, the page is not drawn again.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tiling.jobs.atomic import write_text
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import Locked, waited_lock
from tiling.jobs.outcomes import without_folders
from tiling.jobs.pages import render
from tiling.qc.facts import FOLDER, SlideFacts, facts_from
from tiling.qc.rules import RULES, Warned, judge, rank

# What a row of the page holds; the script in page.html reads it by these names.
_COLUMNS = (
    "slide_id",
    "patches",
    "mpp",
    "mpp_l0",
    "mpp_source",
    "tissue_share",
    "tissue_covered",
    "pen_share",
    "median_sharpness",
    "width_l0",
    "height_l0",
    "patch_size_px",
    "patch_size_um",
    "tissue_method",
    "reader",
)
_MADE_OF = re.compile(r'<meta name="made-of" content="(\w+)">')
_HEAD_CHARS = 1000


def write_qc_page(out: Path) -> None:
    """Write `out/qc.html`. Does nothing where it is made of the same, or another job holds it for a minute.

    Parts of an array job that end together wait for each other, so that the last page has the slides of all.
    """
    page = out / "qc.html"
    with suppress(Locked), waited_lock(page):
        written, failed = _written(out), failures(out)
        made_of = _digest(written, failed)
        if made_of != _made_of(page):
            data = page_data(_facts(written, out), failed)
            write_text(page, render("tiling.qc", "page.html", style=Markup(page_style()), data=data, made_of=made_of))


def _made_of(page: Path) -> str:
    """What the page that is there says; empty where there is none, or one of before."""
    with suppress(OSError, ValueError), page.open(encoding="utf-8") as file:
        if found := _MADE_OF.search(file.read(_HEAD_CHARS)):
            return found[1]
    return ""


def _digest(written: Mapping[str, bytes], failed: Mapping[str, str]) -> str:
    sha = hashlib.sha256(json.dumps([len(written), sorted(failed.items())]).encode())
    own = {file.name: file.read_bytes() for file in resources.files("tiling.qc").iterdir() if file.is_file()}
    for name, content in [*written.items(), *sorted(own.items())]:
        sha.update(f"{name}/{len(content)}/".encode() + content)
    return sha.hexdigest()


def page_style() -> str:
    """The style sheet that the pages share."""
    return resources.files("tiling.qc").joinpath("page.css").read_text(encoding="utf-8")


def page_data(slides: Sequence[SlideFacts], failed: Mapping[str, str]) -> dict[str, Any]:
    """What the page is made of. failed: slide_id → reason, of slides that may have facts of an earlier run."""
    warned = dict(zip([s.slide_id for s in slides], judge(slides), strict=True))
    facts = {s.slide_id: s for s in slides}
    for name, reason in failed.items():
        warned[name] = [Warned("failed", without_folders(reason)), *warned.get(name, [])]
    order = sorted(warned, key=lambda name: (rank(warned[name]), name))
    rules = list(RULES)
    return {
        "rules": [{"name": name, "meaning": meaning} for name, meaning in RULES.items()],
        "columns": [*_COLUMNS, "picture", "warned"],
        "rows": [_row(name, facts.get(name), [[rules.index(w.rule), w.said] for w in warned[name]]) for name in order],
    }


def _row(name: str, facts: SlideFacts | None, warned: list[list[Any]]) -> list[Any]:
    if facts is None:
        return [name, *[None] * len(_COLUMNS[1:]), None, warned]
    values = [getattr(facts, column) for column in _COLUMNS]
    shown = [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]
    return [*shown, [facts.picture.width_px, facts.picture.height_px], warned]


def _written(out: Path) -> dict[str, bytes]:
    """The files of facts by their names, in the order of these. Another job may take one away meanwhile."""
    folder, found = out / FOLDER, {}
    for name in sorted(os.listdir(folder)) if folder.exists() else ():
        if name.endswith(".json"):
            with suppress(OSError), open(f"{folder}/{name}", "rb") as file:
                found[name] = file.read()
    return found


def _facts(written: Mapping[str, bytes], out: Path) -> list[SlideFacts]:
    found = []
    for name, content in written.items():
        with suppress(SlideError):  # damaged, or of another version: the run over that slide writes it again
            found.append(facts_from(content, out / FOLDER / name))
    return found


def failures(out: Path) -> dict[str, str]:
    """slide_id → reason, from every `failures*.csv`, unless a later summary says that the slide has been done."""
    ended: dict[str, tuple[int, str]] = {}
    for path in _by_age(out, "summary*.json"):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            made = path.stat().st_mtime_ns
            ended.update({name: (made, how["status"]) for name, how in json.loads(path.read_text())["slides"].items()})
    reasons = {}
    for path in _by_age(out, "failures*.csv"):
        with suppress(OSError, ValueError, KeyError):
            made = path.stat().st_mtime_ns
            for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
                later, status = ended.get(row["slide_id"], (0, ""))
                if later < made or status == "failed":
                    reasons[row["slide_id"]] = row["reason"]
    return reasons


def _by_age(out: Path, pattern: str) -> list[Path]:
    """Oldest first. Another job may take one away meanwhile."""
    aged = []
    for path in out.glob(pattern):
        with suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(aged)]
