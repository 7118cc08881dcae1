"""The table of findings, in the order in which they are made. `share` is the usual part of the time, in any unit."""

from collections.abc import Callable
from dataclasses import dataclass

from mil.diagnosis.domain_gap import find_domain_gap
from mil.diagnosis.finding import Finding
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.normalisation import find_normalisation
from mil.diagnosis.patch_sheet import find_patches
from mil.diagnosis.scale import find_scale


@dataclass(frozen=True)
class Entry:
    key: str
    title: str
    find: Callable[[Inputs], Finding]  # may raise MissingInput
    share: float


FINDINGS = (
    Entry("normalisation", "Normalisation", find_normalisation, 30),
    Entry("domain-gap", "Distance from ImageNet", find_domain_gap, 30),
    Entry("scale", "Scale", find_scale, 5),
    Entry("patches", "Patches as the model sees them", find_patches, 5),
)
