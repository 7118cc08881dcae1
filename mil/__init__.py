"""Multiple-instance learning on slide labels, and maps of where the model looked.

    from mil import Run, predict, train

For notebooks and programs; they are imported, and torch with them, when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mil.api import Run, predict, train

__all__ = ["Run", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mil.api"), name)
