"""`index.html` over all slides of an output folder, with what was measured of their maps."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from mil.maps import faithfulness
from mil.maps.forms.registry import FORMS, load_form
from mil.maps.measured import read_measured
from mil.maps.pictures import read_figure
from mil.pages import words
from tiling.jobs.atomic import write_text
from tiling.jobs.pages import render
from tiling.qc.page import page_style

_NO_SLIDE = (".gallery.png", ".faithfulness.png")


def write_index(out: Path) -> None:
    """The slides are those whose PNG is in `out`, by their titles; nothing where there is none."""
    helps = {form.ENDING: form.HELP for form in map(load_form, FORMS)}
    helps[faithfulness.PICTURE] = "deletion and insertion curves"
    slides = {path.stem: read_figure(path) for path in sorted(out.glob("*.png")) if not path.name.endswith(_NO_SLIDE)}
    cards = [_card(out, slide_id, made, helps) for slide_id, made in slides.items() if "title" in made]
    if not cards:
        return
    values = {
        "cards": cards,
        "faithfulness": _verdict(read_measured(out / "faithfulness.json")),
        "lesions": _lesions(read_measured(out / "lesions.json")),
    }
    write_text(out / "index.html", render("mil.maps", "index.html", style=Markup(page_style()), **values))


def _card(out: Path, slide_id: str, made: dict[str, Any], helps: dict[str, str]) -> dict[str, Any]:
    """helps: what a file is for, by its ending."""
    endings = sorted(ending for ending in helps if (out / f"{slide_id}{ending}").exists())
    return {
        "slide_id": slide_id,
        "page": f"{slide_id}{'.html' if '.html' in endings else '.png'}",
        "title": made["title"],
        "meaning": made["score is"],
        "faithfulness": _verdict(read_measured(out / f"{slide_id}{faithfulness.ENDING}")),
        "links": [{"ending": ending, "help": helps[ending]} for ending in endings],
    }


def _verdict(found: dict[str, Any] | None) -> str:
    """One sentence on whether the decision follows the score."""
    if not found or found["area"]["value"] is None:
        return ""
    area = found["area"]
    if area["low"] is None:
        return f"Faithfulness {area['value']:+.2f} (0 is chance; no interval from one patient)."
    says = "the decision follows the score" if area["low"] > 0 else "not shown that the decision follows the score"
    return f"Faithfulness {area['value']:+.2f} ({words.low_to_high(area, 2)}; 0 is chance): {says}."


def _lesions(found: dict[str, Any] | None) -> dict[str, Any]:
    if not found:
        return {}
    auroc = found["patch_auroc"]
    spread = "" if auroc["low"] is None else f" ({words.low_to_high(auroc, 2, '-')})"
    figures = {name: f"{found[name]:.2f}" for name in ("froc_score", "dice")}
    return {**figures, "lesions": found["lesions"], "slides": found["slides"], "auroc": f"{auroc['value']:.2f}{spread}"}
