"""TRIDENT's patch features, as WSI.extract_patch_features writes them (layout of version 0.3.0, commit a91fa84).

`features_<encoder>/<slide>.h5`, in the folder of one patching (for example `20x_512px_0px_overlap`):
  features  (N, D) float16 or float32, the encoder's output type; attributes name, savetodir, encoder
  coords    (N, 2) int64, level-0 (x, y) of patch corners (older files: floats, which TRIDENT rounds); attributes
            patch_size (pixels at the target magnification), patch_size_level0, level0_magnification,
            target_magnification, overlap (pixels at the target magnification), name, savetodir, level0_width,
            level0_height

An attribute without a value is the text 'None'. A slide without patches may have features of shape (0,). Magnification
is a bucket (40 for 0.2 to 0.3 µm per pixel): µm per pixel is not in the file. Slide features (`slide_features_*`) have
the same keys with one vector, which is read as a bag of one row.

Written here: level0_magnification is TRIDENT's own bucket of the slide's µm per pixel, target_magnification that
times patch_size / patch_size_level0; both are left out where the slide has no scale. `savetodir` is the folder's name
without its path.
"""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from features.feature_file import EmbeddingInfo, Embeddings, opened
from features.interop.clam import whole_numbers
from features.interop.description import ORIGIN, SAID_IN_FULL, Description, Found, origin_text, with_origin
from features.interop.layout_file import Content, content_differences, read_rows, require_rows, write_content

FOLDER_PREFIX = "features_"
_BUCKETS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))  # below µm per pixel: magnification


class Trident:
    name = "trident"
    needed: tuple[str, ...] = SAID_IN_FULL

    def recognises(self, file: h5py.File) -> bool:
        features, coords = file.get("features"), file.get("coords")
        return (features is not None and "encoder" in features.attrs) or (
            coords is not None and features is not None and "patch_size_level0" in coords.attrs
        )

    def read(self, path: Path) -> Found:
        with opened(path) as file:
            features, coords, whole = read_rows(file, "features", path)
            of_features, of_coords = (
                dict(file["features"].attrs),
                dict(file["coords"].attrs) if "coords" in file else {},
            )
            origin = file.attrs.get(ORIGIN)
        if features.shape == (0,) and len(coords) == 0:
            features = features.reshape(0, 0)
        require_rows(features, coords, path)
        said = Description(
            encoder=_text(of_features.get("encoder")),
            patch_size_px=_whole(of_coords.get("patch_size")),
            patch_size_l0=_whole(of_coords.get("patch_size_level0")),
            overlap_px=_whole(of_coords.get("overlap")),
            width_l0=_whole(of_coords.get("level0_width")),
            height_l0=_whole(of_coords.get("level0_height")),
        )
        if whole:  # what the file says of its patches is not true of the vector
            said = Description(encoder=said.encoder)
        found = Found(path, self.name, features, whole_numbers(coords, path), None, said, whole_slide=whole)
        return with_origin(found, origin)

    def path_in(self, out: Path, embeddings: Embeddings) -> Path:
        return out / _folder(embeddings.info) / f"{embeddings.info.slide_id}.h5"

    def write(self, path: Path, embeddings: Embeddings) -> None:
        write_content(path, _content(embeddings))

    def differences(self, path: Path, embeddings: Embeddings) -> list[str]:
        return content_differences(path, _content(embeddings))


def _content(embeddings: Embeddings) -> Content:
    info = embeddings.info
    where = {"name": info.slide_id, "savetodir": _folder(info)}
    return Content(
        {"features": embeddings.features, "coords": embeddings.coords_l0.astype(np.int64)},
        {
            "": {ORIGIN: origin_text(info, str(embeddings.features.dtype))},
            "features": {**where, "encoder": info.encoder},
            "coords": {
                "patch_size": info.patch_size_px,
                "patch_size_level0": info.patch_size_l0,
                **_magnification(info),
                "overlap": info.overlap_px,
                **where,
                "level0_width": info.width_l0,
                "level0_height": info.height_l0,
            },
        },
    )


def _folder(info: EmbeddingInfo) -> str:
    return f"{FOLDER_PREFIX}{info.encoder.replace('/', '-')}"


def _magnification(info: EmbeddingInfo) -> dict[str, float]:
    bucket = next((name for below, name in _BUCKETS if info.mpp_l0 < below), None)
    if math.isnan(info.mpp_l0) or bucket is None:
        return {}
    target = bucket * info.patch_size_px / info.patch_size_l0
    return {"level0_magnification": bucket, "target_magnification": int(target) if target.is_integer() else target}


def _text(value: Any) -> str | None:
    text = value.decode() if isinstance(value, bytes) else value
    return None if text in (None, "None") else str(text)


def _whole(value: Any) -> int | None:
    """A number as TRIDENT takes it, cut to an integer; None for what says nothing."""
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None
