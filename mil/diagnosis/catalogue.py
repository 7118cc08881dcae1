"""The table of findings, in the order in which they are made. `share` is the usual part of the time, in any unit."""

from collections.abc import Callable
from dataclasses import dataclass

from mil.diagnosis.finding import Finding
from mil.diagnosis.findings.copied_labels import find_copied_labels
from mil.diagnosis.findings.domain_gap import find_domain_gap
from mil.diagnosis.findings.duplicates import find_duplicates
from mil.diagnosis.findings.helpful_slides import find_helpful_slides
from mil.diagnosis.findings.normalisation import find_normalisation
from mil.diagnosis.findings.patches import find_patches
from mil.diagnosis.findings.scale import find_scale
from mil.diagnosis.findings.shortcut import find_shortcut
from mil.diagnosis.findings.signal import find_signal
from mil.diagnosis.findings.training import find_training
from mil.diagnosis.findings.wrong_labels import find_wrong_labels
from mil.diagnosis.inputs import Inputs


@dataclass(frozen=True)
class Entry:
    key: str
    title: str
    find: Callable[[Inputs], Finding]  # may raise MissingInput
    share: float


FINDINGS = (
    Entry("normalisation", "Normalisation", find_normalisation, 30),
    Entry("domain-gap", "Distance from ImageNet", find_domain_gap, 30),
    Entry("duplicates", "Slides that are there twice", find_duplicates, 5),
    Entry("signal", "Signal", find_signal, 20),
    Entry("shortcut", "Shortcuts", find_shortcut, 20),
    Entry("copied-labels", "Copied labels against MIL", find_copied_labels, 120),
    Entry("training", "Training", find_training, 3),
    Entry("wrong-labels", "Labels that may be wrong", find_wrong_labels, 5),
    Entry("influence", "Which slides help or harm", find_helpful_slides, 30),
    Entry("scale", "Scale", find_scale, 5),
    Entry("patches", "Patches as the model sees them", find_patches, 5),
)
