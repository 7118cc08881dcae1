"""Pictures as bytes, and figures as PNG files that say what they were made from."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tiling.jobs.atomic import atomic_file

_KEY = "slidemil"  # of the text chunk


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB as JPEG, (H, W, 4) RGBA as PNG."""
    buffer = io.BytesIO()
    if pixels.shape[2] == 4:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def data_url(pixels: NDArray[np.uint8]) -> str:
    """The picture as an address that a page can hold."""
    kind = "png" if pixels.shape[2] == 4 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded(pixels)).decode()}"


def write_figure(path: Path, figure: Figure, dpi: int, provenance: Mapping[str, Any]) -> None:
    """A PNG whose text chunk holds `provenance`; the same figure has the same bytes."""
    text = {"Software": None, _KEY: json.dumps(provenance, sort_keys=True)}
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata=text, pil_kwargs={"compress_level": 3})


def read_figure(path: Path) -> dict[str, Any]:
    """What a PNG says of its origin; empty if it was not made by this program."""
    with Image.open(path) as image:
        return dict(json.loads(image.info.get(_KEY, "{}")))
