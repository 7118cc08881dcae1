"""Where the features of a cohort lie while it is trained on: in memory where they fit, else in a mapped scratch file.

The results are the same, bit for bit. The scratch file has no name in its folder, so the system frees its room when
the process ends, however it ends. A slide is mapped for as long as somebody holds its tensor, and read ahead where it
is expected; what the page cache has room for is read from the disk once.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.jobs.errors import RequestError
from tiling.jobs.memory import available_bytes

_SHARE = 0.5  # of the memory that is free at the start, or of a GPU's, which features may take


class FeatureIntake:
    """Takes the features of slide after slide and gives them back as one sequence of bags.

    joins: whether the slides of a patient, which come one after another, are one bag; else each is one.
    memory: "ram", "mapped", or "auto": mapped as soon as they take more than half of the memory that was free.
    folder: of the scratch file.
    """

    def __init__(self, memory: str, folder: Path, joins: bool = False) -> None:
        self._folder, self._joins, self._patient = folder, joins, ""
        self._budget = {"ram": float("inf"), "mapped": 0.0}.get(memory, _SHARE * available_bytes())
        self._held: list[list[NDArray[np.float16]]] = []  # of each bag, its slides
        self._mapped: MappedFeatures | None = None
        self.nbytes = 0

    def add(self, features: NDArray[np.float16], patient: str = "") -> None:
        """(N, D), N >= 1, of a slide of this patient. RequestError where the scratch file cannot be written."""
        joined = self._joins and patient == self._patient and self.nbytes > 0
        self._patient = patient
        self.nbytes += features.nbytes
        if self._mapped is None:
            self._held[-1].append(features) if joined else self._held.append([features])
            if self.nbytes <= self._budget:
                return
        try:
            if self._mapped is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._mapped = MappedFeatures(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 (open while mapped)
                for bag in self._held:
                    for place, part in enumerate(bag):
                        self._mapped.append(part, joined=place > 0)
                self._held.clear()
            else:
                self._mapped.append(features, joined)
        except OSError as error:
            raise RequestError(
                f"{self._folder}: no scratch file for {self.nbytes / 1e9:.1f} GB of features and more ({error}); "
                "name a folder with room by --scratch, or keep them in memory with --memory ram"
            ) from error

    def features(self) -> Sequence[Tensor]:
        """All that was added, S of (N, D) float16. The parts of a bag are freed as soon as they are joined."""
        return tuple(torch.from_numpy(_joined(bag)) for bag in self._held) if self._mapped is None else self._mapped

    def notice(self) -> list[str]:
        """What the user should know of it."""
        if self._mapped is None:
            return []
        return [f"features take {self.nbytes / 1e9:.1f} GB and lie in a scratch file in {self._folder}, not in memory"]


def _joined(parts: list[NDArray[np.float16]]) -> NDArray[np.float16]:
    """Leaves the whole as the only part."""
    if len(parts) > 1:
        parts[:] = [np.concatenate(parts)]
    return parts[0]


class TakenOneByOne(Sequence[Tensor], ABC):
    """Tensors that are made when they are asked for."""

    @abstractmethod
    def take(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        return self.take(index)


class MappedFeatures(TakenOneByOne):
    """S of (N, D) float16 in a file, mapped one by one; what is written into a tensor does not reach the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: list[tuple[int, tuple[int, int]]] = []  # offset in bytes, shape

    def append(self, features: NDArray[np.float16], joined: bool = False) -> None:
        """joined: they are the next rows of the last tensor."""
        offset = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(features).data)
        self._file.flush()  # a full disk shows here, and not as a crash when it is read
        if joined:
            start, (rows, dim) = self._places[-1]
            self._places[-1] = start, (rows + len(features), dim)
        else:
            self._places.append((offset, features.shape))

    def __len__(self) -> int:
        return len(self._places)

    def expect(self, index: int) -> None:
        """It will be taken soon: the system begins to read it."""
        offset, (rows, dim) = self._places[index]
        os.posix_fadvise(self._file.fileno(), offset, 2 * rows * dim, os.POSIX_FADV_WILLNEED)

    def take(self, index: int) -> Tensor:
        offset, shape = self._places[index]
        mapped = np.memmap(self._file, np.float16, "c", offset, shape)
        return torch.from_numpy(mapped)


def on_device(features: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The same features on a GPU, where they take at most half of its free memory; else as they are."""
    if device.type != "cuda":
        return features
    nbytes = sum(f.nbytes for f in features)
    if nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return features
    return tuple(f.to(device) for f in features)
