"""HDF5 files that are whole."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from tiling.jobs.atomic import atomic_file


@contextmanager
def atomic_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill; it becomes `path` when the block ends without an error.

    It is made in memory: HDF5 itself crashes the process when the disk is full.
    """
    name = f"in memory {uuid.uuid4().hex}"  # HDF5 takes two open files of one name for the same
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with atomic_file(path) as temporary:
        temporary.write_bytes(image)
