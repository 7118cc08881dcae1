"""The files that make a slide, and what tells it from every other slide."""

import hashlib
import json
from pathlib import Path

_SAMPLE_BYTES = 1 << 20
_SAMPLES = 18
_ZARR_METADATA = frozenset({"zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata"})


def slide_fingerprint(path: Path) -> str:
    """sha256 over size and up to 18 MiB of a slide's bytes, evenly spread: quick on a 4 GB file.

    A slide of several files (a DICOM folder, an MRXS with its folder) counts all of them by name. Of an OME-Zarr
    folder all names and sizes count, the metadata, and 1 MiB of up to 18 chunks, evenly spread.
    """
    if is_zarr(path):
        return _zarr_fingerprint(path)
    files = slide_files(path)
    sha = hashlib.sha256()
    samples = max(1, _SAMPLES // len(files)) if files else 0
    for file in files:
        size = file.stat().st_size
        sha.update(f"{file.name if len(files) > 1 else ''}:{size};".encode())
        with file.open("rb") as stream:
            for i in range(samples):
                stream.seek(i * max(0, size - _SAMPLE_BYTES) // max(1, samples - 1))
                sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()


def _zarr_fingerprint(folder: Path) -> str:
    files = slide_files(folder)
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.relative_to(folder).as_posix()}:{file.stat().st_size};".encode())
    chunks = [file for file in files if file.name not in _ZARR_METADATA]
    sampled = chunks if len(chunks) <= _SAMPLES else [chunks[i * len(chunks) // _SAMPLES] for i in range(_SAMPLES)]
    for file in [file for file in files if file.name in _ZARR_METADATA] + sampled:
        with file.open("rb") as stream:
            sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()


def slide_files(path: Path) -> list[Path]:
    """The files that make a slide: one, those of a DICOM or zarr folder, or an MRXS file and those of its folder."""
    if path.is_file():
        companion = path.with_suffix("")
        with_companion = path.suffix.lower() == ".mrxs" and companion.is_dir()
        return [path, *(_files_in(companion) if with_companion else ())]
    if is_zarr(path):
        return sorted(f for f in path.rglob("*") if f.is_file())
    return _files_in(path) if path.is_dir() else []


def _files_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file())


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store of any kind: OME-Zarr, a patch store of ours, or others'."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is an OME-Zarr image, or one that bioformats2raw wrote around its images."""
    if not is_zarr(path):
        return False
    try:
        new, old = path / "zarr.json", path / ".zattrs"
        said = json.loads(new.read_bytes())["attributes"] if new.is_file() else json.loads(old.read_bytes())
        described = said.get("ome", said)
        return "multiscales" in described or "bioformats2raw.layout" in described
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
