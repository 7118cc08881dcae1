"""The findings, in the order in which they are made. A new one is one file in mil.diagnosis.findings and one line here.

A finding is a module with four names: KEY, TITLE, SHARE (its usual part of the time, in any unit) and `find`.
"""

from importlib import import_module
from typing import Protocol, cast

from mil.diagnosis.finding import Finding
from mil.diagnosis.inputs import Inputs


class Entry(Protocol):
    """What such a module offers."""

    KEY: str
    TITLE: str
    SHARE: float

    def find(self, inputs: Inputs, /) -> Finding:
        """May raise MissingInput."""


_MODULES = (
    "normalisation",
    "domain_gap",
    "duplicates",
    "signal",
    "shortcut",
    "copied_labels",
    "training",
    "wrong_labels",
    "helpful_patients",
    "scale",
    "patches",
)
FINDINGS = tuple(cast(Entry, import_module(f"mil.diagnosis.findings.{name}")) for name in _MODULES)
