"""Make all findings, one after the other: the library behind diagnose-cohort.

A finding that lacks its input says what to give. One that fails on odd data says why and does not end the others.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mil.diagnosis.catalogue import FINDINGS, Entry
from mil.diagnosis.cluster import findings_on_cluster
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.finding import SEVERITIES, Diagnosis, Finding, MissingInput
from mil.diagnosis.inputs import Inputs, Sources, load_inputs
from mil.diagnosis.page import counts_of, write_diagnosis


@dataclass(frozen=True)
class Progress:
    """How far the diagnosis is: in the finding `number` of `findings`, from 0."""

    number: int
    findings: int
    title: str
    share: float  # of this finding that is done, 0..1
    done: float  # of all


def diagnose(
    sources: Sources,
    config: DiagnoseConfig | None = None,
    *,
    out: Path | str | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """All findings on a cohort, the worst first; with `out` also written there, as diagnosis.html and diagnosis.json.

    progress is told where each finding begins and how far it is; warn what the user should know of the cohort, before
    any finding is made. Raises RequestError for a request that is wrong, OSError where `out` cannot be written.
    """
    steps = _Steps(FINDINGS, progress)
    inputs = load_inputs(sources, config or DiagnoseConfig(), steps.advance, warn)
    if inputs.config.scheduler:
        findings = findings_on_cluster(inputs, [entry.KEY for entry in FINDINGS], _find_by_key, steps.ended)
    else:
        findings = make_findings(inputs, FINDINGS, steps.start)
    findings = worst_first(findings)
    cohort = inputs.cohort
    diagnosis = Diagnosis(sources.target, cohort.encoder, counts_of(cohort), tuple(findings), cohort.warnings)
    if out is not None:
        write_diagnosis(Path(out), diagnosis)
    return diagnosis


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def make_findings(
    inputs: Inputs, entries: Sequence[Entry], start: Callable[[int], None] = lambda number: None
) -> list[Finding]:
    """One finding an entry, in their order; `start` is told the position of each before it is made."""
    found = []
    for number, entry in enumerate(entries):
        start(number)
        found.append(_find(entry, inputs))
    return found


def _find_by_key(key: str, inputs: Inputs) -> Finding:
    return _find(next(entry for entry in FINDINGS if key == entry.KEY), inputs)


def _find(entry: Entry, inputs: Inputs) -> Finding:
    try:
        return entry.find(inputs)
    except MissingInput as missing:
        return Finding(entry.KEY, entry.TITLE, "missing", missing.verdict, str(missing))
    except Exception as error:  # whatever odd data does to one finding, the others are wanted
        reason = f"{type(error).__name__}: {error}"
        return Finding(
            entry.KEY,
            entry.TITLE,
            "missing",
            f"Could not be made of these data ({reason.splitlines()[0]}).",
            "The other findings stand. The full message is on the standard error of the command.",
            error=reason,
            traceback=traceback.format_exc(),
        )


class _Steps:
    """Which finding is being made, and how much of all that is by the usual shares."""

    def __init__(self, entries: Sequence[Entry], tell: Callable[[Progress], None]) -> None:
        self._entries, self._tell, self._number = entries, tell, 0

    def start(self, number: int) -> None:
        self._number = number
        self.advance(0.0)

    def ended(self, count: int) -> None:
        """So many are made, in any order."""
        self._number = count - 1
        self.advance(1.0)

    def advance(self, share: float) -> None:
        shares = [entry.SHARE for entry in self._entries]
        done = (sum(shares[: self._number]) + share * shares[self._number]) / sum(shares)
        self._tell(Progress(self._number, len(shares), self._entries[self._number].TITLE, share, done))
