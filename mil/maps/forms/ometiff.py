"""Patch scores as a pyramidal, tiled OME-TIFF at the slide's own geometry, for QuPath, OpenSlide and Bio-Formats.

Bio-Formats finds the smaller levels of an OME-TIFF as SubIFDs of its first image, OpenSlide as the images that follow
it. Here they are both: the same levels, reachable by either way.
"""

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import tifffile
from numpy.typing import NDArray

from mil.maps.drawn import Drawn
from mil.maps.grid import colour_scale, render, score_grid
from tiling.jobs.atomic import atomic_file

ENDING = ".ome.tiff"
HELP = "the map as a pyramid for QuPath, OpenSlide and Bio-Formats"
_PIXELS_A_PATCH = 8  # along each side, at the finest level
_TILE_PX = 256
_BACKGROUND = 255


def write(path: Path, drawn: Drawn) -> None:
    """RGB levels of 2:1; a pixel of the finest is a whole number of level-0 pixels. White where there is no patch."""
    slide, scores = drawn.slide, drawn.scores
    x, y, width, height = drawn.bounds_l0 or (0, 0, slide.width_l0, slide.height_l0)
    downsample = max(1, slide.patch_size_l0 // _PIXELS_A_PATCH)
    shapes = [(math.ceil(height / downsample), math.ceil(width / downsample))]
    while max(shapes[-1]) > _TILE_PX:
        shapes.append((math.ceil(shapes[-1][0] / 2), math.ceil(shapes[-1][1] / 2)))
    scale = colour_scale(scores)

    def level(number: int) -> NDArray[np.uint8]:
        grid = score_grid(
            slide.coords, scores.values, slide.patch_size_l0, shapes[number], downsample * 2**number, (x, y)
        )
        rgba = render(grid, scale)
        return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(_BACKGROUND))

    mpp = slide.mpp_l0 * downsample
    known = not math.isnan(mpp)
    size = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    origin = json.dumps(drawn.provenance, sort_keys=True)
    same = str(uuid5(NAMESPACE_URL, origin))  # the same map has the same bytes
    metadata = {"axes": "YXS", "Name": scores.meaning, "Description": origin, "UUID": same}
    options: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (_TILE_PX, _TILE_PX),
        "compression": "deflate",
        "compressionargs": {"level": 3},
    }

    def resolution(number: int) -> dict[str, Any]:
        if not known:
            return {}
        return {"resolution": (1e4 / (mpp * 2**number),) * 2, "resolutionunit": "CENTIMETER"}

    with atomic_file(path) as temporary:
        with tifffile.TiffWriter(temporary, ome=True) as tiff:
            tiff.write(
                level(0),
                subifds=len(shapes) - 1,
                metadata=metadata | (size if known else {}),
                **resolution(0),
                **options,
            )
            for number in range(1, len(shapes)):
                tiff.write(level(number), subfiletype=1, **resolution(number), **options)
        _chain_levels(temporary)


def _chain_levels(path: Path) -> None:
    """Let each level's directory point to the next one's, so that the levels follow the first image too."""
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first
        assert isinstance(first, tifffile.TiffPage)
        offsets = [first.offset, *(first.subifds or ())]
        form = tiff.tiff
    with path.open("r+b") as file:
        for here, following in itertools.pairwise(offsets):
            file.seek(here)
            (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            file.seek(here + form.tagnosize + tags * form.tagsize)
            file.write(struct.pack(form.offsetformat, following))


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    with tifffile.TiffFile(path) as tiff:
        text = tiff.ome_metadata or ""
    image: Any = tifffile.xml2dict(text).get("OME", {}).get("Image", {}) if text else {}
    found: dict[str, Any] = json.loads(image.get("Description", "{}"))
    return found
