"""Which slides deserve a look: each rule, what it says of a slide, and the order in which they matter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.qc.facts import SlideFacts

_NO_TISSUE, _ALL_TISSUE, _MUCH_PEN = 0.001, 0.95, 0.05
_COVERED = 0.8
_BLURRED_Z, _LEAST_SPREAD = 3.5, 0.1  # of log sharpness; equal slides would make any difference a large z
_ALIKE, _COMMON = 0.10, 0.05
_SCANNERS_MPP = (0.1, 1.1)  # a 100× oil lens to a 10× one
_FEW = 0.1
ENOUGH = 10  # slides, before one is compared with the others

# In the order of the page: what most surely is wrong stands first.
RULES = {
    "failed": "The slide could not be tiled. The reason stands beside it.",
    "no patch": "No patch was kept.",
    "no tissue": f"Less than {_NO_TISSUE:.1%} of the slide is tissue.",
    "all tissue": f"More than {_ALL_TISSUE:.0%} of the slide is tissue, though tissue was looked for.",
    "tissue left out": f"Less than {_COVERED:.0%} of the tissue lies in patches that were kept.",
    "blurred": (
        f"The median sharpness of its patches is far below the cohort's: more than {_BLURRED_Z} robust standard "
        f"deviations (from the median absolute deviation) on a log scale, and below half of the cohort's median. "
        f"Asked from {ENOUGH} slides on."
    ),
    "pen": f"Pen is more than {_MUCH_PEN:.0%} of what is tissue or pen.",
    "odd scale": (
        f"The scale of level 0 is unknown, is not between {_SCANNERS_MPP[0]} and {_SCANNERS_MPP[1]} µm per pixel "
        f"where scanners are, or is within {_ALIKE:.0%} of the scale of fewer than {_COMMON:.0%} of the other slides "
        f"(asked from {ENOUGH} slides on, so that two kinds of scanner may be in one cohort)."
    ),
    "few patches": (
        f"Fewer than {_FEW:.0%} of the median number of patches of the slides that have any. "
        f"Asked from {ENOUGH} slides on."
    ),
}


@dataclass(frozen=True)
class Warned:
    """A rule of RULES that speaks for a slide, and the numbers why."""

    rule: str
    said: str


def judge(slides: Sequence[SlideFacts]) -> list[list[Warned]]:
    """The warnings of each slide, compared with the others, in the order of RULES."""
    blurred, odd = _blurred(slides), _rare_scales(slides)
    counts = [s.patches for s in slides if s.patches]
    median = float(np.median(counts)) if len(counts) >= ENOUGH else 0.0
    return [
        [*_by_itself(slide), *_compared(slide, why_blurred, why_odd, median)]
        for slide, why_blurred, why_odd in zip(slides, blurred, odd, strict=True)
    ]


def rank(warned: Sequence[Warned]) -> tuple[int, int]:
    """Sorts suspicious slides first: by their gravest warning, then by how many there are."""
    order = list(RULES)
    return min((order.index(w.rule) for w in warned), default=len(order)), -len(warned)


def _by_itself(slide: SlideFacts) -> Iterator[Warned]:
    if slide.patches == 0:
        yield Warned("no patch", "no patch was kept")
    if slide.tissue_share < _NO_TISSUE:
        yield Warned("no tissue", f"{slide.tissue_share:.2%} of the slide is tissue")
    if slide.tissue_share > _ALL_TISSUE and slide.tissue_method != "all":
        yield Warned("all tissue", f"{slide.tissue_share:.1%} of the slide is tissue")
    if slide.patches and slide.tissue_covered is not None and slide.tissue_covered < _COVERED:
        yield Warned("tissue left out", f"{slide.tissue_covered:.1%} of the tissue lies in patches")


def _compared(slide: SlideFacts, why_blurred: str, why_odd: str, median_patches: float) -> Iterator[Warned]:
    if why_blurred:
        yield Warned("blurred", why_blurred)
    if slide.inked_share > _MUCH_PEN:
        yield Warned("pen", f"{slide.inked_share:.1%} of tissue and pen is pen")
    if why_odd:
        yield Warned("odd scale", why_odd)
    if 0 < slide.patches < _FEW * median_patches:
        yield Warned("few patches", f"the cohort's median is {median_patches:,.0f} patches")


def _blurred(slides: Sequence[SlideFacts]) -> list[str]:
    values = np.array([np.nan if s.median_sharpness is None else s.median_sharpness for s in slides], float)
    known = np.isfinite(values)
    if known.sum() < ENOUGH:
        return [""] * len(slides)
    logs = np.log(np.maximum(values, 1e-6))
    middle = np.median(logs[known])
    spread = max(1.4826 * float(np.median(np.abs(logs[known] - middle))), _LEAST_SPREAD)
    median = float(np.exp(middle))
    return [
        f"sharpness {value:.3g}, the cohort's median is {median:.3g}"
        if np.isfinite(value) and (log - middle) / spread < -_BLURRED_Z and value < median / 2
        else ""
        for value, log in zip(values, logs, strict=True)
    ]


def _rare_scales(slides: Sequence[SlideFacts]) -> list[str]:
    known = np.sort([s.mpp_l0 for s in slides if s.mpp_l0 is not None])
    return [_odd_scale(slide.mpp_l0, known) for slide in slides]


def _odd_scale(mpp_l0: float | None, known: NDArray[np.float64]) -> str:
    if mpp_l0 is None:
        return "the scale is unknown"
    if not _SCANNERS_MPP[0] <= mpp_l0 <= _SCANNERS_MPP[1]:
        return f"no scanner has {mpp_l0:.4g} µm/px"
    low, high = np.searchsorted(known, [mpp_l0 * (1 - _ALIKE), mpp_l0 * (1 + _ALIKE)], side="right")
    others, alike = len(known) - 1, int(high - low) - 1
    if len(known) < ENOUGH or alike >= _COMMON * others:
        return ""
    near = f"only {alike:,}" if alike else "none"
    return f"{mpp_l0:.4g} µm/px in level 0, and {near} of the {others:,} other scales is near that"
