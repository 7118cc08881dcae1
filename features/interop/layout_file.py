"""Reading and writing HDF5 files of any layout: checked arrays in, one atomic file out, what differs by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from features.feature_file import Embeddings, opened
from features.hdf5 import atomic_hdf5
from features.interop.description import Found
from tiling.jobs.errors import SlideError

_CHUNK_ROWS = 1024
Attributes = Mapping[str, Any]


class Layout(Protocol):
    """One tool's feature files."""

    name: str
    needed: tuple[str, ...]  # fields of Description without which such a file cannot be written

    def recognises(self, file: h5py.File) -> bool: ...

    def read(self, path: Path) -> Found:
        """Raises SlideError for a file that is damaged or of another kind."""
        ...

    def path_in(self, out: Path, embeddings: Embeddings) -> Path:
        """Where the slide's file lies below the output folder."""
        ...

    def write(self, path: Path, embeddings: Embeddings) -> None:
        """Atomically. Raises SlideError where the layout cannot hold the values."""
        ...

    def differences(self, path: Path, embeddings: Embeddings) -> list[str]:
        """What an existing file says otherwise than `write` would; empty where it is the same."""
        ...


@dataclass(frozen=True)
class Content:
    """Data sets by name, and attributes by the name of the data set ("" is the file itself)."""

    data: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Attributes]


def data_set(file: h5py.File, name: str, path: Path) -> NDArray[Any]:
    """A whole data set. Raises SlideError if there is none of that name."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise SlideError(f"{path}: no data set {name!r}; found {', '.join(map(repr, file)) or 'an empty file'}")
    return np.asarray(found[()])


def read_rows(file: h5py.File, name: str, path: Path) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Features (N, D) of the data set `name`, coords (N, 2), and whether they are one vector of a whole slide.

    Tools write that one as (D,), or as (1, D) with no coordinates or those of all patches; its coords are 0.
    """
    features = data_set(file, name, path)
    alone = features.ndim == 1 and len(features) > 0
    lonely = features.ndim == 2 and len(features) == 1 and ("coords" not in file or len(file["coords"]) != 1)
    if alone or lonely:
        return features.reshape(1, -1), np.zeros((1, 2), np.int64), True
    return features, data_set(file, "coords", path), False


def require_rows(features: NDArray[Any], coords: NDArray[Any] | None, path: Path) -> None:
    """Raise SlideError unless features are (N, D) finite floats and coords (N, 2) finite numbers of the same N."""
    if features.ndim != 2:
        raise SlideError(f"{path}: features of shape {features.shape}, expected (patches, D)")
    if features.dtype.kind != "f":
        raise SlideError(f"{path}: features are {features.dtype}, expected floating point")
    if coords is not None and (coords.shape != (len(features), 2) or coords.dtype.kind not in "iuf"):
        raise SlideError(
            f"{path}: features {features.shape} and coords {coords.shape} {coords.dtype} do not belong together"
        )
    for name, values in (("features", features), ("coords", coords)):
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise SlideError(f"{path}: {name} hold NaN or infinity; extract them again")


def write_content(path: Path, content: Content) -> None:
    with atomic_hdf5(path) as file:
        for name, values in content.data.items():
            chunks = (min(max(len(values), 1), _CHUNK_ROWS), max(values.shape[1], 1))
            growing = (None, *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunks, maxshape=growing, track_times=False)
            file.flush()  # see `atomic_hdf5`
        for name, attributes in content.attributes.items():
            (file[name] if name else file).attrs.update(attributes)


def content_differences(path: Path, content: Content) -> list[str]:
    """What an existing file says otherwise, one line each."""
    lines = []
    with opened(path) as file:
        for name, wanted in content.data.items():
            found = data_set(file, name, path)
            if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
                lines.append(f"{name}: found {found.dtype} {found.shape}, wanted {wanted.dtype} {wanted.shape}")
            elif not np.array_equal(found, wanted):
                lines.append(f"{name}: other values")
        for name, attributes in content.attributes.items():
            there = dict((file[name] if name else file).attrs)
            for key, value in attributes.items():
                if key not in there or not np.array_equal(there[key], value):
                    lines.append(f"attribute {key}: found {there.get(key)!r}, wanted {value!r}")
    return lines
