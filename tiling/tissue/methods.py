"""How tissue is found, by name: our own methods, and masks that installed packages bring.

For that, a package of yours holds a function (pixels, mpp) → tissue: pixels (H, W, 3) uint8 RGB are the slide's
thumbnail, mpp its µm per pixel (about 8; NaN where the slide has no scale), tissue is (H, W) bool

    def learned(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
        return network()(pixels, mpp) > 0.5

and names it in its pyproject.toml; `tile-slides --tissue learned` finds it where both are installed.

    [project.entry-points."slidemil.tissue"]
    learned = "my_package:learned"
"""

import difflib
import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels

GROUP = "slidemil.tissue"  # of entry points
METHODS = ("otsu", "entropy", "all")


def package_of(method: str) -> str:
    """`name version` of the distribution that brings a method, empty for our own; ValueError where there is none."""
    if method in METHODS:
        return ""
    distribution = _entry(method).dist
    assert distribution is not None  # entry_points() knows each one's
    return f"{distribution.name} {distribution.version}"


def installed_mask(method: str, pixels: Pixels, mpp: float) -> NDArray[np.bool_]:
    """Tissue (H, W) bool as an installed package says. Raises SlideError where what it returns is no such mask."""
    entry = _entry(method)
    try:
        function: Callable[[Pixels, float], object] = entry.load()
    except (ImportError, AttributeError) as error:
        raise SlideError(f"--tissue {method}: cannot import {entry.value}, which should make it ({error})") from error
    mask = function(pixels.copy(), mpp)
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != pixels.shape[:2]:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise SlideError(
            f"--tissue {method}: {entry.value} returned {found}, expected a bool array {pixels.shape[:2]}, "
            "the thumbnail's (height, width)"
        )
    return mask


@functools.cache  # of thousands of slides, each asks
def _entry(method: str) -> EntryPoint:
    installed = entry_points(group=GROUP)
    found = {entry.value: entry for entry in installed if entry.name == method}
    if not found:
        names = [*METHODS, *sorted(installed.names)]
        close = difflib.get_close_matches(method, names)
        near = f"close to it is {', '.join(close)}; " if close else ""
        raise ValueError(f"--tissue {method}: no such method; {near}those installed are {', '.join(names)}")
    if len(found) > 1:
        raise ValueError(f"--tissue {method}: {' and '.join(sorted(found))} both go by this name; uninstall one")
    (entry,) = found.values()
    return entry
