"""At which µm per pixel a network sees patches, against the scales that it was trained at.

A network that takes images of one size sees other patches resized, and with them their µm per pixel. Where it was
trained at scales that are known, patches that come to none of them are refused, unless the size is asked for.
"""

import math

from features.encoders import Encoder
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStoreInfo

TOLERANCE = 1.05  # two scales are one; a store is within 1.02 of what was asked for


def require_trained_scale(encoder: Encoder, patches: PatchStoreInfo) -> None:
    """Raises SlideError, which says how to tile instead."""
    trained, side = encoder.preprocessing.mpp, encoder.preprocessing.input_px or patches.patch_size_px
    seen = patches.mpp * patches.patch_size_px / side
    if not trained or any(_ratio(seen, mpp) <= TOLERANCE for mpp in trained):
        return
    if math.isnan(seen) and patches.patch_size_px == side:
        return
    best = trained[0] if math.isnan(patches.mpp) else min(trained, key=lambda mpp: _ratio(patches.mpp, mpp))
    raise SlideError(
        f"{encoder.name} was trained on images of {side} px at {_listed(trained)} µm/px, and these are "
        f"{seen_as(patches, side)}; tile again with tile-slides --mpp {best:g} --patch-px {side}, or say "
        f"--input-px {side} to have them embedded so"
    )


def seen_as(patches: PatchStoreInfo, side: int) -> str:
    """How a network that is given images of `side` px sees these patches, in words."""
    own = patches.patch_size_px
    resized = f", resized to {side} px: {_words(patches.mpp * own / side)}" if side != own else ""
    return f"patches of {own} px at {_words(patches.mpp)}{resized}"


def _listed(scales: tuple[float, ...]) -> str:
    *others, last = (f"{mpp:g}" for mpp in scales)
    return f"{', '.join(others)} or {last}" if others else last


def _words(mpp: float) -> str:
    return "no known scale" if math.isnan(mpp) else f"{mpp:.3g} µm/px"


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
