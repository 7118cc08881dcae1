"""Patches to cached embeddings of a frozen backbone. May import `tiling`, never `mil`.

`from features import extract` does in Python what `extract-features` does, `convert` what `convert-features` does, and
`read` reads a feature file. Names are loaded when they are asked for, so that a command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.api import (
        ConvertConfig,
        Embeddings,
        FeatureConfig,
        Outcome,
        Outcomes,
        RequestError,
        SlideError,
        convert,
        extract,
        read,
    )

__all__ = [
    "ConvertConfig",
    "Embeddings",
    "FeatureConfig",
    "Outcome",
    "Outcomes",
    "RequestError",
    "SlideError",
    "convert",
    "extract",
    "read",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("features.api"), name)
