"""CLAM's feature folder, as its extract_features_fp.py writes it (layout of commit 53e2409, April 2025).

  h5_files/<slide>.h5   features (N, D) float32; coords (N, 2) int32, level-0 (x, y) of patch corners; no attributes
  pt_files/<slide>.pt   the features alone, a float32 tensor written by torch.save; what CLAM's training reads

Older versions and other tools of the family write coords as int64: both are read. Nothing says which encoder it
was, how large a patch is, or the scale. The patching step knows the patch: `patches/<slide>.h5` (its h5 files, from
create_patches_fp.py) holds `coords` with the attributes `patch_size` (pixels of the level that was read),
`patch_level`, `downsample` and `level_dim` of that level.

Written here: both files of a slide, the .pt first, so that a slide with an h5 file is whole.
"""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.feature_file import Embeddings, opened
from features.interop.description import ORIGIN, Description, Found, joined, origin_text, with_origin
from features.interop.layout_file import (
    Content,
    content_differences,
    data_set,
    read_rows,
    require_rows,
    write_content,
)
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import lock

H5_FOLDER, PT_FOLDER = "h5_files", "pt_files"


class Clam:
    name = "clam"
    needed: tuple[str, ...] = ()

    def recognises(self, file: h5py.File) -> bool:
        return "features" in file

    def read(self, path: Path) -> Found:
        if path.suffix == ".pt":
            features = _load_tensor(path)
            require_rows(features, None, path)
            return Found(path, self.name, features, None, None, Description())
        with opened(path) as file:
            features, coords, whole = read_rows(file, "features", path)
            origin = file.attrs.get(ORIGIN)
        require_rows(features, coords, path)
        coords = whole_numbers(coords, path)
        found = Found(path, self.name, features, coords, None, Description(), whole_slide=whole)
        return with_origin(found, origin)

    def path_in(self, out: Path, embeddings: Embeddings) -> Path:
        return out / H5_FOLDER / f"{embeddings.info.slide_id}.h5"

    def write(self, path: Path, embeddings: Embeddings) -> None:
        import torch

        content = _content(embeddings)
        written = io.BytesIO()  # torch.save puts a file's name into the file
        torch.save(torch.from_numpy(np.ascontiguousarray(content.data["features"])), written)
        tensor = _tensor_path(path)
        with lock(tensor), atomic_file(tensor) as temporary:
            temporary.write_bytes(written.getvalue())
        write_content(path, content)

    def differences(self, path: Path, embeddings: Embeddings) -> list[str]:
        content = _content(embeddings)
        lines = content_differences(path, content)
        tensor = _tensor_path(path)
        if not tensor.exists():
            return [*lines, f"{tensor} is missing"]
        if not np.array_equal(_load_tensor(tensor), content.data["features"]):
            lines.append(f"{tensor}: other values")
        return lines


def with_patches(found: Found, folder: Path) -> Found:
    """`found` with the patch size, and coordinates where it has none, from CLAM's patching file of the slide."""
    path = folder / f"{found.path.stem}.h5"
    with opened(path) as file:
        coords = data_set(file, "coords", path)
        attributes = dict(file["coords"].attrs)
    require_rows(np.zeros((len(found.features), 1), np.float32), coords, path)
    coords_l0 = whole_numbers(coords, path)
    if found.coords_l0 is not None and not np.array_equal(found.coords_l0, coords_l0):
        raise SlideError(f"{path}: its coordinates are not those of {found.path}; is it of the same patching?")
    return replace(found, coords_l0=coords_l0, said=joined(found.said, _patching(attributes, path), found.path))


def whole_numbers(coords: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Level-0 pixels as int64. Raises SlideError for what int64 cannot hold."""
    with np.errstate(invalid="ignore"):
        whole = coords.astype(np.int64) if coords.dtype.kind in "iu" else np.rint(coords).astype(np.int64)
    if coords.size and np.abs(whole.astype(np.float64) - coords).max() > 0.5:
        raise SlideError(f"{path}: coordinates up to {coords.max():.3g}, which are no pixels")
    return whole


def _patching(attributes: dict[str, Any], path: Path) -> Description:
    try:
        size, level = int(attributes["patch_size"]), int(attributes["patch_level"])
        downsample = float(np.ravel(attributes["downsample"])[0])
        width, height = (int(v) for v in np.ravel(attributes["level_dim"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SlideError(f"{path}: no attributes of CLAM's patching on `coords` ({error})") from error
    if float(attributes.get("custom_downsample", 1)) != 1:
        raise SlideError(f"{path}: custom_downsample is not supported; give --patch-px and --patch-size-l0 instead")
    size_l0 = round(size * downsample)
    if level:
        return Description(patch_size_px=size, patch_size_l0=size_l0)
    return Description(patch_size_px=size, patch_size_l0=size_l0, width_l0=width, height_l0=height)


def _content(embeddings: Embeddings) -> Content:
    features, coords, info = embeddings.features, embeddings.coords_l0, embeddings.info
    if coords.size and not -(2**31) <= coords.min() <= coords.max() < 2**31:
        raise SlideError(f"{info.slide_id}: coordinates up to {coords.max()}, CLAM's are int32 (below {2**31})")
    return Content(
        {"features": features.astype(np.float32), "coords": coords.astype(np.int32)},
        {"": {ORIGIN: origin_text(info, str(features.dtype))}},
    )


def _tensor_path(path: Path) -> Path:
    return path.parent.parent / PT_FOLDER / f"{path.stem}.pt"


def _load_tensor(path: Path) -> NDArray[Any]:
    """A tensor and nothing else: a pickle that would run code is refused."""
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SlideError(f"{path}: holds more than a tensor; loading it could run code, so it is refused") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SlideError(f"{path}: not a file of torch.save that can be read ({error})") from error
    if not isinstance(tensor, torch.Tensor):
        raise SlideError(f"{path}: holds {type(tensor).__name__}, expected one tensor (patches, D)")
    return np.asarray(tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy())
