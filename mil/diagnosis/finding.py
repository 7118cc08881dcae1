"""What a finding is: a verdict in one sentence, the numbers behind it, pictures, and what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["fault", "look", "fine", "missing"]  # the worst first
SEVERITIES: tuple[Severity, ...] = ("fault", "look", "fine", "missing")

Figure = Mapping[str, float | None]  # {"value"} with "low" and "high", a 95 % interval, or "p", or all of these


@dataclass(frozen=True)
class Picture:
    """A chart as SVG text (mil.pages.chart), or an image as the bytes of a PNG or JPEG file; exactly one of the two."""

    title: str
    caption: str  # plain text
    svg: str = ""
    image: bytes = b""
    wide: bool = False  # takes the whole width of the page

    def __post_init__(self) -> None:
        assert bool(self.svg) != bool(self.image)


@dataclass(frozen=True)
class Details:
    """A table of the evidence: plain text, one string a cell, the first column is a heading."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


@dataclass(frozen=True)
class Finding:
    """One answer. All texts are plain, without HTML.

    numbers: by name in words; each has `value` with `low` and `high` (95 % interval), `p`, or both. None is undefined.
    evidence: further plain values for diagnosis.json alone (lists, dicts, numbers, text).
    """

    key: str
    title: str
    severity: Severity
    verdict: str
    remedy: str
    numbers: Mapping[str, Figure] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    details: Sequence[Details] = ()
    evidence: Mapping[str, object] = field(default_factory=dict)
    error: str = ""  # why it could not be made, where it failed on odd data
    traceback: str = ""  # of that failure


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first, and what they are of. counts: slides, patients, patches, slides_of_class."""

    target: str
    encoder: Mapping[str, Any]  # of the features, see Cohort.encoder
    counts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = ()  # of the cohort

    @property
    def failed(self) -> bool:
        """Whether a finding failed on odd data."""
        return any(finding.error for finding in self.findings)

    def __getitem__(self, key: str) -> Finding:
        """KeyError for a key that no finding has."""
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(key)


class MissingInput(Exception):
    """Raised by a finding that cannot be made of what was given. The text says what to give, in one sentence."""

    verdict = "Not looked at: its input is missing."


class ForClassesAlone(MissingInput):
    """Raised by a finding that has no meaning for the kind of target. The text says where to look instead."""

    verdict = "Not looked at: it is for classes alone."
