"""STAMP's tile features, as `stamp preprocess` writes them (layout of version 2.5.0, commit c54ce06).

`<extractor>/<slide>.h5`:
  feats   (N, D) float16; STAMP reads any floating type
  coords  (N, 2) float32, (x, y) of tile corners in µm from the slide's corner
Attributes of the file: stamp_version, extractor, unit ("um"), tile_size_um, tile_size_px, code_hash, feat_type
("tile"; "slide" and "patient" have one vector and no coords: a bag of one row). Version 2.0 wrote `tile_size` (µm) for
`tile_size_um`.
Files of version 1 are another layout (`stamp_1`) and read only; others whose coordinates have no unit are refused.
STAMP refuses a file of a stamp_version newer than itself.

The slide's µm per pixel is not in the file, so level-0 pixels need --mpp-l0: they are coords / mpp, rounded, which is
what STAMP's heatmaps do. STAMP's own tiles need not start on whole pixels; rounding moves them by half a pixel at most.

Written here: `feats` in the type that the features have, no code_hash, and the lowest stamp_version that has this
layout. float32 holds a pixel exactly up to about 8 million; a coordinate that would not come back is refused.
"""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from features.feature_file import Embeddings, opened
from features.interop.description import ORIGIN, Description, Found, origin_text, with_origin
from features.interop.layout_file import Content, content_differences, read_rows, require_rows, write_content
from features.interop.stamp_1 import is_stamp_1, read_stamp_1
from tiling.jobs.errors import SlideError

_STAMP_VERSION = "2.3.0"


class Stamp:
    name = "stamp"
    needed: tuple[str, ...] = ("encoder", "patch_size_px", "patch_size_l0", "mpp_l0")

    def recognises(self, file: h5py.File) -> bool:
        return "feats" in file

    def read(self, path: Path) -> Found:
        with opened(path) as file:
            version_1 = is_stamp_1(file)
        return read_stamp_1(path, self.name) if version_1 else self._read_2(path)

    def _read_2(self, path: Path) -> Found:
        with opened(path) as file:
            attributes = dict(file.attrs)
            kind = attributes.get("feat_type", "tile")
            features, coords, whole = read_rows(file, "feats", path)
        if kind not in (("slide", "patient") if whole else ("tile",)):
            expected = "slide or patient, as it has one vector" if whole else "tile, as it has many rows"
            raise SlideError(f"{path}: feat_type is {kind!r}; expected {expected}")
        require_rows(features, coords, path)
        if whole:
            encoder = attributes.get("encoder", attributes.get("extractor"))
            said = Description(encoder=None if encoder is None else str(encoder))
            return Found(path, self.name, features, coords, None, said, whole_slide=True)
        said = Description(
            encoder=str(attributes["extractor"]) if "extractor" in attributes else None,
            patch_size_px=int(attributes["tile_size_px"]) if attributes.get("tile_size_px") else None,
            patch_size_um=_tile_um(attributes, path),
        )
        found = Found(path, self.name, features, None, coords.astype(np.float64), said)
        return with_origin(found, attributes.get(ORIGIN))

    def path_in(self, out: Path, embeddings: Embeddings) -> Path:
        return out / f"{embeddings.info.slide_id}.h5"

    def write(self, path: Path, embeddings: Embeddings) -> None:
        write_content(path, _content(embeddings))

    def differences(self, path: Path, embeddings: Embeddings) -> list[str]:
        return content_differences(path, _content(embeddings))


def _tile_um(attributes: dict[str, Any], path: Path) -> float:
    unit = attributes.get("unit")
    size = attributes.get("tile_size_um", attributes.get("tile_size") if unit == "um" else None)
    if unit not in (None, "um") or not size or not math.isfinite(float(size)):
        raise SlideError(
            f"{path}: unit {unit!r} and tile size {size!r}, expected coordinates in µm with tile_size_um (STAMP 2); "
            "extract it again with `stamp preprocess`"
        )
    return float(size)


def _content(embeddings: Embeddings) -> Content:
    features, coords, info = embeddings.features, embeddings.coords_l0, embeddings.info
    if math.isnan(info.mpp_l0):
        raise SlideError(f"{info.slide_id}: STAMP's coordinates are in µm and the slide has no scale; give --mpp-l0")
    coords_um = (coords * info.mpp_l0).astype(np.float32)
    if not np.array_equal(np.rint(coords_um.astype(np.float64) / info.mpp_l0).astype(np.int64), coords):
        raise SlideError(f"{info.slide_id}: coordinates up to {coords.max()}, beyond what float32 µm can tell apart")
    return Content(
        {"feats": features, "coords": coords_um},
        {
            "": {
                "stamp_version": _STAMP_VERSION,
                "extractor": info.encoder,
                "unit": "um",
                "tile_size_um": info.patch_size_l0 * info.mpp_l0,
                "tile_size_px": info.patch_size_px,
                "feat_type": "tile",
                ORIGIN: origin_text(info, str(features.dtype)),
            }
        },
    )
