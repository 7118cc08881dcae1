"""Heatmaps as pages that load from disk alone: one of each slide, and `index.html` over all of an output folder."""

import base64
import html
import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mil.maps.faithfulness import read_faithfulness
from mil.maps.forms.gallery import extremes, patch_picture, said
from mil.maps.forms.png import title
from mil.maps.grid import colour_scale, render, score_grid
from mil.maps.lesions import read_measures
from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention
from tiling.jobs.atomic import write_text
from tiling.slides.slide import Slide
from tiling.tissue.thumbnail import read_thumbnail

_LONGEST_SIDE_PX = 1600
_BAR_STEPS = 64
_PROVENANCE = re.compile(r'<meta name="slidemil" content="([^"]*)">')


def write_page(
    path: Path, slide: SlideAttention, scores: PatchScores, source: Slide, provenance: dict[str, Any]
) -> None:
    """The slide with the map as a layer whose opacity is a slider, and the extreme patches, which find their place."""
    thumbnail = read_thumbnail(source, max(1.0, max(slide.width_l0, slide.height_l0) / _LONGEST_SIDE_PX))
    height, width = thumbnail.pixels.shape[:2]
    scale = colour_scale(scores)
    grid = score_grid(slide.coords, scores.values, slide.patch_size_l0, (height, width), thumbnail.downsample)
    chosen = extremes(scores)
    bar = np.asarray(scale.norm().inverse(np.linspace(0, 1, _BAR_STEPS + 1)), np.float64)
    data = {
        "title": title(slide),
        "meaning": scores.meaning,
        "tissue": _data_url(Image.fromarray(thumbnail.pixels), "JPEG"),
        "layer": _data_url(Image.fromarray(render(grid, scale)), "PNG"),
        "bar": _data_url(Image.fromarray(render(bar[None, :], scale)), "PNG"),
        "ticks": [said(scale.low), said(float(bar[_BAR_STEPS // 2])), said(scale.high)],
        "width": width,
        "height": height,
        "downsample": thumbnail.downsample,
        "mpp": slide.mpp_l0 if slide.mpp_l0 == slide.mpp_l0 else None,
        "side": slide.patch_size_l0,
        "patches": {
            name: [
                {
                    "x": int(slide.coords[i, 0]),
                    "y": int(slide.coords[i, 1]),
                    "score": said(scores.values[i]),
                    "picture": _data_url(patch_picture(source, slide, i), "JPEG"),
                }
                for i in indices.tolist()
            ]
            for name, indices in (("highest", chosen.top), ("lowest", chosen.bottom))
        },
    }
    page = _template("mil.maps.forms", "heatmap_page.html").replace("%TITLE%", html.escape(slide.slide_id))
    page = page.replace("%PROVENANCE%", html.escape(json.dumps(provenance, sort_keys=True)))
    write_text(path, page.replace("%DATA%", json.dumps(data).replace("</", "<\\/")))


def read_provenance(path: Path) -> dict[str, Any]:
    """What a page says of its origin; empty if it was not made by this program."""
    found = _PROVENANCE.search(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = json.loads(html.unescape(found[1])) if found else {}
    return values


def write_index(out: Path) -> None:
    """`index.html` over all slides whose PNG is in `out`, by their titles; nothing where there is none."""
    slides = {}
    for path in sorted(out.glob("*.png")):
        with Image.open(path) as image:
            made = json.loads(image.info.get("slidemil", "{}"))
        if "title" in made and not path.name.endswith(".gallery.png"):
            slides[path.stem] = made
    if not slides:
        return
    cards = "\n".join(_card(out, slide_id, made) for slide_id, made in slides.items())
    cohort, lesions = read_faithfulness(out / "faithfulness.json"), read_measures(out / "lesions.json")
    page = _template("mil.maps", "heatmap_index.html").replace(
        "%COUNT%", f"{len(slides):,} slide{'s' * (len(slides) > 1)}"
    )
    write_text(
        out / "index.html",
        page.replace("%FAITHFUL%", _verdict(cohort)).replace("%LESIONS%", _lesions(lesions)).replace("%CARDS%", cards),
    )


def _card(out: Path, slide_id: str, made: dict[str, Any]) -> str:
    name = html.escape(slide_id)
    others = sorted(
        path.name
        for path in out.glob(f"{slide_id}.*")
        if path.suffix != ".json" and path.name.split(".", 1)[0] == slide_id.split(".", 1)[0]
    )
    links = " ".join(f'<a href="{html.escape(n)}">{html.escape(n.removeprefix(slide_id + "."))}</a>' for n in others)
    verdict = _verdict(read_faithfulness(out / f"{slide_id}.faithfulness.json"))
    page = f"{name}.html" if f"{slide_id}.html" in others else f"{name}.png"
    return (
        f'<article><a href="{page}"><img loading="lazy" src="{name}.png" alt="heatmap of {name}"></a>'
        f"<h2>{html.escape(made['title'])}</h2><p>{html.escape(made['score is'])}</p>"
        f"<p>{verdict}</p><p>{links}</p></article>"
    )


def _verdict(found: dict[str, Any] | None) -> str:
    """One sentence on whether the decision follows the score."""
    if not found or found["area"]["value"] is None:
        return ""
    area = found["area"]
    if area["low"] is None:
        return f"Faithfulness {area['value']:+.2f} (0 is chance; no interval from one patient)."
    says = "the decision follows the score" if area["low"] > 0 else "not shown that the decision follows the score"
    return f"Faithfulness {area['value']:+.2f} ({area['low']:+.2f} to {area['high']:+.2f}; 0 is chance): {says}."


def _lesions(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    auroc = found["patch_auroc"]
    spread = "" if auroc["low"] is None else f" ({auroc['low']:.2f} to {auroc['high']:.2f})"
    return (
        f"Against {found['lesions']} lesions in {found['slides']} slides: patch AUROC {auroc['value']:.2f}{spread}, "
        f'<a href="lesions.png">FROC score</a> {found["froc_score"]:.2f}, best Dice {found["dice"]:.2f}.'
    )


def _template(room: str, name: str) -> str:
    return resources.files(room).joinpath(name).read_text(encoding="utf-8")


def _data_url(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
