"""Slides to tissue-masked patches. Imports neither `features` nor `mil`, and never torch.

`from tiling import tile` does in Python what `tile-slides` does. Names are loaded when they are asked for, so that a
command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiling.api import Outcome, Outcomes, RequestError, TilingConfig, tile

__all__ = ["Outcome", "Outcomes", "RequestError", "TilingConfig", "tile"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tiling.api"), name)
