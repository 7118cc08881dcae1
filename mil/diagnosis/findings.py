"""The table of findings, in the order in which they are made. `share` is the usual part of the time, in any unit."""

from collections.abc import Callable
from dataclasses import dataclass

from mil.diagnosis.finding import Finding
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.scale import find_scale


@dataclass(frozen=True)
class Entry:
    key: str
    title: str
    find: Callable[[Inputs], Finding]  # may raise MissingInput
    share: float


FINDINGS = (Entry("scale", "Scale", find_scale, 5),)
