"""A Dask scheduler with one worker, both on threads of this process, to which jobs come as bytes through a port."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import LocalCluster


@contextmanager
def dask_worker() -> Iterator[str]:
    """The address of the scheduler. A process of its own would load torch first; see `dask_processes`."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        yield str(cluster.scheduler_address)
