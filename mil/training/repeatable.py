"""Torch set so that the same request gives the same numbers, and set back afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def repeatable(threads: int | None = None) -> Iterator[None]:
    """Deterministic algorithms and, where it is given, this many threads; the random state is the caller's again."""
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads_before, cublas = torch.get_num_threads(), os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms loads the compiler first: 3 s
    torch.set_num_threads(threads or threads_before)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.set_num_threads(threads_before)
        if cublas is None:
            del os.environ[_CUBLAS]
