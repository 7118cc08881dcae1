"""HDF5 files that are whole: feature files, those of other tools, and the attention files of runs."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from tiling.jobs.atomic import atomic_file


@contextmanager
def atomic_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill; it becomes `path` when the block ends without an error. Raises OSError.

    It is made in memory, so that a full disk is an error of Python: HDF5's own driver crashes the process there. For
    the same bytes whenever the same is written, give data sets no times (`track_times=False`) and `flush` after each
    chunked one, whose chunks are otherwise placed when Python drops it.
    """
    name = f"in memory {uuid.uuid4().hex}"  # HDF5 takes two open files of one name for the same
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with atomic_file(path) as temporary:
        temporary.write_bytes(image)
