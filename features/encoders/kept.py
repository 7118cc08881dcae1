"""What was found out about a network once and is kept beside its features: tensors, and what is known of them.

A safetensors file with one JSON text under the metadata key `slidemil`, which holds format and version too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.provenance import check_format

Tensors: TypeAlias = dict[str, NDArray[Any]]


def write_kept(path: Path, kind: tuple[str, int], tensors: Tensors, known: Mapping[str, Any]) -> None:
    """kind: format and version."""
    text = json.dumps({"format": kind[0], "version": kind[1], **known})
    with atomic_file(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, {"slidemil": text})


def read_kept(path: Path, kind: tuple[str, int], keeper: str) -> tuple[Tensors, dict[str, Any]]:
    """Raises RequestError unless it is a file of this format and version, which `keeper` keeps."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = json.loads((file.metadata() or {}).get("slidemil", "{}"))
            check_format(known, *kind, path)
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, SlideError) as error:
        raise RequestError(f"{path}: not what {keeper} keeps ({error})") from error
    return tensors, {key: value for key, value in known.items() if key not in ("format", "version")}
