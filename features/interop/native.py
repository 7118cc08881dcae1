"""Our own feature files, seen as one layout among the others. The contract is in features.feature_file."""

import math
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np

from features.feature_file import Embeddings, read_embeddings, write_embeddings
from features.interop.description import SAID_IN_FULL, Found, described
from features.interop.layout_file import require_rows


class Native:
    name = "slidemil"
    needed: tuple[str, ...] = SAID_IN_FULL

    def recognises(self, file: h5py.File) -> bool:
        return "format" in file.attrs

    def read(self, path: Path) -> Found:
        found = read_embeddings(path)
        require_rows(found.features, found.coords_l0, path)
        return Found(path, self.name, found.features, found.coords_l0, None, described(found.info), found.info)

    def path_in(self, out: Path, embeddings: Embeddings) -> Path:
        return out / f"{embeddings.info.slide_id}.h5"

    def write(self, path: Path, embeddings: Embeddings) -> None:
        write_embeddings(path, embeddings)

    def differences(self, path: Path, embeddings: Embeddings) -> list[str]:
        found, wanted = read_embeddings(path), embeddings
        lines = []
        for name in ("features", "coords_l0"):
            a, b = getattr(found, name), getattr(wanted, name)
            if a.dtype != b.dtype or not np.array_equal(a, b):
                lines.append(f"{name}: found other values or another type ({a.dtype} {a.shape}, wanted {b.dtype})")
        there, asked = asdict(found.info), asdict(wanted.info)
        for key in asked:
            both_nan = all(isinstance(v, float) and math.isnan(v) for v in (there[key], asked[key]))
            if there[key] != asked[key] and not both_nan:
                lines.append(f"{key}: found {there[key]!r}, wanted {asked[key]!r}")
        return lines
