"""What an output says of itself: its format and version, and what it was made from."""

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tiling.jobs.errors import SlideError

_PACKAGES = (
    "slidemil",
    "numpy",
    "zarr",
    "h5py",
    "tifffile",
    "openslide-python",
    "torch",
    "torchvision",
    "timm",
)


def check_format(
    attributes: Mapping[str, Any], name: str, version: int, path: Path | str, still_read: Collection[int] = ()
) -> None:
    """Raise SlideError unless `attributes` say format `name` in this `version`, or in one that is still read."""
    found, found_version = attributes.get("format"), attributes.get("version")
    if found != name:
        raise SlideError(f"{path}: format is {found!r}, expected {name!r}; is this the right folder?")
    if found_version not in (version, *still_read):
        raise SlideError(
            f"{path}: {name} version {found_version}, this program reads version {version}; "
            "make it again with --overwrite, or read it with the program version that wrote it"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances, one line a key: `patch_px: found 512, wanted 256`."""
    keys = sorted(set(found) | set(wanted))
    return [f"{k}: found {found.get(k)!r}, wanted {wanted.get(k)!r}" for k in keys if found.get(k) != wanted.get(k)]


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path | str) -> None:
    """Raise SlideError naming what differs between an existing output's provenance and the wanted one."""
    lines = differences(found, wanted)
    if lines:
        raise SlideError(
            f"{path} exists and was made differently ({'; '.join(lines)}); "
            "choose another --out, or replace it with --overwrite"
        )


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide about the numbers, as far as they are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def digest(value: Any) -> str:
    """sha256 of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
