"""CONTRACT feature file `features/<slide_id>.h5` (HDF5): the embeddings of one slide's patches.

Data sets
  features  (N, D) float16 (float32 on request), chunks of at least 1,024 rows (fewer when N is smaller)
  coords    (N, 2) int64, level-0 (x, y) of each patch's top-left corner; row i belongs to features row i

Attributes of the file: `format`, `version`, and the fields of `EmbeddingInfo`. The data set `coords` also
carries the attributes that TRIDENT puts there (`patch_size`, `patch_size_level0`, `level0_width`,
`level0_height`, `overlap`, `name`). N = 0 is valid. A reader MUST refuse another version, and a file whose
rows do not match. The file is written whole or not at all. `slide_fingerprint` is absent where nobody knows it: files
of earlier programs have none, and their readers pass over it. `calibration` is there where `precision` is int8: JSON
with, among others, the cosine of the features to those in fp32 (`cosine_mean`, `cosine_lowest`) and the versions.
`input_mpp`, µm per pixel of the image that the network saw, follows from the others (`mpp` · `patch_size_px` /
`input_px`): it is written and never read, and older files have none. Version 1 is read: it had no `resizing`, `decoder`
and `engine`, which are then `unknown`.

Group `statistics`, which a reader may leave aside and old files do not have:
  pixel_mean, pixel_std  (3,) float64, RGB in 0..1 over all `tissue_pixels` (attribute) of the patches
  norm_mean, norm_var    (ΣC,) float32, moments of the input to the encoder's batch norms, over `norm_patches`
                         (attribute) evenly spaced patches; `norm_layers` (attribute) is JSON, name → channels. Absent
                         where the encoder has no batch norm

A file that `convert-features` made from another tool's says `unknown` (0 for `input_px`) where nobody knows how the
features were made; its `store_digest` is then `<layout>:` and the sha256 of the features and coordinates found.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from io import RawIOBase
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.hdf5 import atomic_hdf5
from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format

FORMAT, VERSION = "slidemil-features", 2
STILL_READ = (1,)
UNKNOWN = "unknown"
MAY_BE_ABSENT = ("slide_fingerprint", "calibration")
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class EmbeddingInfo:
    """Where a feature file comes from. Two files are comparable when all fields but the slide's are equal.

    Features of another tool that are read in place may leave things open: text is then UNKNOWN, a size 0, the
    overlap -1, a scale NaN.
    """

    slide_id: str
    store_digest: str  # digest of the patch store that was embedded
    encoder: str  # name, for example "resnet50"
    weights: str  # "default", "random" or the name of the weights file
    weights_sha256: str  # of the state dict's bytes
    input_px: int  # side of the square image that the network saw
    normalisation: str  # "mean=(…) std=(…)" on 0..1 RGB
    precision: str  # "fp32", "bf16", "fp16" or "int8"
    patch_size_px: int
    patch_size_l0: int  # side of a patch in level-0 pixels
    overlap_px: int
    width_l0: int
    height_l0: int
    mpp_l0: float  # µm per level-0 pixel; NaN if the slide has no scale
    mpp: float  # µm per patch pixel; NaN if the slide has no scale
    resizing: str = UNKNOWN  # how pixels became input_px, and the version of these rules, such as "bicubic, rules 1"
    decoder: str = UNKNOWN  # what made pixels of the patches' bytes, and its version, such as "simplejpeg 1.9.0"
    engine: str = UNKNOWN  # what computed the network, its version and where, such as "torch 2.9.1 on cuda"
    slide_fingerprint: str = ""  # of the slide file, see tiling.slides.files.slide_fingerprint; empty if not known
    calibration: str = ""  # of an int8 network, see features.encoders.int8: how it was made, and how near fp32 it is

    @property
    def input_mpp(self) -> float:
        """µm per pixel of the image that the network saw; NaN where that is not known."""
        return self.mpp * self.patch_size_px / self.input_px if self.input_px else math.nan

    def provenance(self) -> dict[str, Any]:
        """What must be equal for an existing file to be taken as done."""
        return {**self.making(), **{key: getattr(self, key) for key in ("store_digest", "input_px", "decoder")}}

    def making(self) -> dict[str, Any]:
        """What must be equal for all files of a folder, whatever the slide."""
        keys = ("encoder", "weights_sha256", "normalisation", "resizing", "precision", "engine", "calibration")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Embeddings:
    """features (N, D) float16 or float32; coords_l0 (N, 2) int64 (x, y) of patch corners."""

    features: NDArray[Any]
    coords_l0: NDArray[np.int64]
    info: EmbeddingInfo


@dataclass(frozen=True)
class SlideStatistics:
    """By-products of embedding one slide, see features.statistics. Means and variances are NaN over nothing."""

    tissue_pixels: int
    pixel_mean: NDArray[np.float64]  # (3,) RGB in 0..1
    pixel_std: NDArray[np.float64]  # (3,)
    norm_patches: int
    norm_layers: dict[str, int]  # channels by the name of the layer; empty where the encoder has no batch norm
    norm_mean: NDArray[np.floating]  # (ΣC,)
    norm_var: NDArray[np.floating]  # (ΣC,)


def write_embeddings(path: Path, embeddings: Embeddings, statistics: SlideStatistics | None = None) -> None:
    """Write a feature file atomically. Raises SlideError for NaN or infinity among the features."""
    features, coords, info = embeddings.features, embeddings.coords_l0, embeddings.info
    if not np.isfinite(features).all():
        raise SlideError(f"{info.slide_id}: the encoder returned NaN or infinity; try --precision fp32")
    assert len(features) == len(coords), (features.shape, coords.shape)
    with atomic_hdf5(path) as file:
        chunks = (min(len(features), _CHUNK_ROWS), features.shape[1]) if len(features) else None
        file.create_dataset("features", data=features, chunks=chunks, track_times=False)
        file.flush()  # see `atomic_hdf5`
        coords_data = file.create_dataset("coords", data=coords.astype(np.int64), track_times=False)
        file.attrs.update(format=FORMAT, version=VERSION, **attributes_of(info), input_mpp=info.input_mpp)
        coords_data.attrs.update(
            name=info.slide_id,
            patch_size=info.patch_size_px,
            patch_size_level0=info.patch_size_l0,
            level0_width=info.width_l0,
            level0_height=info.height_l0,
            overlap=info.overlap_px,
        )
        if statistics is not None:
            _write_statistics(file.create_group("statistics"), statistics)


def _write_statistics(group: h5py.Group, of: SlideStatistics) -> None:
    group.attrs["tissue_pixels"] = of.tissue_pixels
    group.create_dataset("pixel_mean", data=of.pixel_mean, track_times=False)
    group.create_dataset("pixel_std", data=of.pixel_std, track_times=False)
    if of.norm_layers:
        group.attrs.update(norm_patches=of.norm_patches, norm_layers=json.dumps(of.norm_layers))
        group.create_dataset("norm_mean", data=of.norm_mean, dtype=np.float32, track_times=False)
        group.create_dataset("norm_var", data=of.norm_var, dtype=np.float32, track_times=False)


def read_statistics(path: Path, weights_sha256: str = "", content: RawIOBase | None = None) -> SlideStatistics | None:
    """None for a file without them, or of other weights than these. Raises SlideError like `read_info`.

    content: the file's, where it does not lie in a local folder.
    """
    with opened(path, content) as file:
        info = _info(file, path)
        group = file.get("statistics")
        if group is None or weights_sha256 not in ("", info.weights_sha256):
            return None
        try:
            layers = json.loads(group.attrs.get("norm_layers", "{}"))
            mean, var = (group[key][:] if layers else np.empty(0) for key in ("norm_mean", "norm_var"))
            return SlideStatistics(
                int(group.attrs["tissue_pixels"]),
                group["pixel_mean"][:],
                group["pixel_std"][:],
                int(group.attrs.get("norm_patches", 0)),
                layers,
                mean,
                var,
            )
        except (KeyError, OSError) as error:
            raise SlideError(f"{path}: damaged feature file ({error}); extract it again") from error


def attributes_of(info: EmbeddingInfo) -> dict[str, Any]:
    """The attributes of a file, without those that may be absent and are empty."""
    return {key: value for key, value in asdict(info).items() if key not in MAY_BE_ABSENT or value}


def read_info(path: Path) -> EmbeddingInfo:
    """The attributes alone: cheap. Raises SlideError if the file is unreadable or of another version."""
    with opened(path) as file:
        return _info(file, path)


def read_info_and_dtype(path: Path, content: RawIOBase | None = None) -> tuple[EmbeddingInfo, str]:
    """With the type of the stored features, "float16" or "float32". Raises SlideError like `read_info`.

    content: the file's, where it does not lie in a local folder.
    """
    with opened(path, content) as file:
        return _info(file, path), str(file["features"].dtype)


def read_embeddings(path: Path) -> Embeddings:
    """The whole file in memory. Raises SlideError if it is unreadable, of another version or inconsistent."""
    with opened(path) as file:
        info = _info(file, path)
        try:
            features, coords = file["features"][:], file["coords"][:]
        except (KeyError, OSError) as error:
            raise SlideError(f"{path}: damaged feature file ({error}); extract it again") from error
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise SlideError(f"{path}: features {features.shape} and coords {coords.shape} do not belong together")
    return Embeddings(features, coords, info)


@contextmanager
def opened(path: Path, content: RawIOBase | None = None) -> Iterator[h5py.File]:
    """A file of features, of any layout. Raises SlideError for whatever is wrong with it, also while it is read."""
    try:
        with h5py.File(content or path, "r") as file:
            yield file
    except FileNotFoundError:
        raise SlideError(f"{path}: no such feature file") from None
    except (OSError, RuntimeError) as error:
        if "unable to lock file" in str(error):
            raise SlideError(f"{path}: open for writing in another program; close it there and run again") from error
        raise SlideError(f"{path}: not a readable HDF5 file ({error}); copy it again or extract it again") from error


def _info(file: h5py.File, path: Path) -> EmbeddingInfo:
    attributes = dict(file.attrs)
    check_format(attributes, FORMAT, VERSION, path, STILL_READ)
    values: dict[str, Any] = {}
    for entry in fields(EmbeddingInfo):
        if entry.name not in attributes:
            if entry.name in MAY_BE_ABSENT or (entry.default is not MISSING and attributes["version"] == 1):
                continue
            raise SlideError(f"{path}: attribute {entry.name!r} is missing; extract it again")
        assert isinstance(entry.type, type)
        values[entry.name] = entry.type(attributes[entry.name])
    return EmbeddingInfo(**values)
