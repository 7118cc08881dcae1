"""A heatmap as a page that loads from disk alone and zooms as the viewer does."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mil.maps.drawn import Drawn
from mil.maps.extremes import extremes, patch_picture
from mil.maps.grid import bar_ticks, colour_bar, colour_scale, render, said, score_grid
from mil.maps.pictures import data_url
from mil.maps.scores import decision
from tiling.jobs.atomic import write_text
from tiling.jobs.pages import render as page
from tiling.qc.page import page_style

ENDING = ".html"
HELP = "slide and map on one page that zooms, for a browser"
_LONGEST_SIDE_PX = 1600
_PROVENANCE = re.compile(r'<meta name="slidemil" content="([^"]*)">')


def write(path: Path, drawn: Drawn) -> None:
    """The slide with the map as a layer whose opacity is a slider, and the extreme patches, which find their place."""
    style = _text("mil.pages/leaflet/leaflet.css") + page_style() + _text("mil.pages/slide_map.css")
    style += _text("mil.maps.forms/heatmap_page.css")
    script = _text("mil.pages/leaflet/leaflet.js") + "\n" + _text("mil.pages/slide_map.js")
    script += _text("mil.maps.forms/heatmap_page.js")
    text = page(
        "mil.maps.forms",
        "heatmap_page.html",
        slide_id=drawn.slide.slide_id,
        said=", ".join(decision(drawn.slide)),
        provenance=json.dumps(drawn.provenance, sort_keys=True),
        data=_data(drawn),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
    )
    write_text(path, text)


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    found = _PROVENANCE.search(path.read_text(encoding="utf-8"))
    return dict(json.loads(html.unescape(found[1]))) if found else {}


def _data(drawn: Drawn) -> dict[str, Any]:
    """What the script shows; places and sizes in level-0 pixels."""
    slide, scores, thumbnail = drawn.slide, drawn.scores, drawn.thumbnail(_LONGEST_SIDE_PX)
    height, width = thumbnail.pixels.shape[:2]
    scale, chosen = colour_scale(scores), extremes(scores)
    grid = score_grid(slide.coords, scores.values, slide.patch_size_l0, (height, width), thumbnail.downsample)
    return {
        "size": (slide.width_l0, slide.height_l0),
        "pictured": (width * thumbnail.downsample, height * thumbnail.downsample),
        "downsample": thumbnail.downsample,
        "mpp": slide.mpp_l0 if slide.mpp_l0 == slide.mpp_l0 else None,
        "side": slide.patch_size_l0,
        "meaning": scores.meaning,
        "ticks": bar_ticks(scores),
        "bar": data_url(colour_bar(scale)),
        "tissue": data_url(thumbnail.pixels),
        "layer": data_url(render(grid, scale, 1.0)),
        "patches": {"highest": _patches(drawn, chosen.top), "lowest": _patches(drawn, chosen.bottom)},
    }


def _patches(drawn: Drawn, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    slide = drawn.slide
    corners = slide.coords[indices].tolist()
    return [
        {
            "x": x,
            "y": y,
            "score": said(drawn.scores.values[index]),
            "picture": data_url(patch_picture(drawn.source, slide, index)),
        }
        for index, (x, y) in zip(indices.tolist(), corners, strict=True)
    ]


def _text(name: str) -> str:
    """A file of a package, as `package/file`."""
    package, _, file = name.partition("/")
    return resources.files(package).joinpath(file).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """By which the page's policy lets this script or style run and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
