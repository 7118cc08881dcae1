"""The cohort has its place between photographs and noise."""

from drawn_cohort import inputs_of

from mil.diagnosis.findings import domain_gap
from mil.diagnosis.numbers.reference_images import noise, photographs


def test_the_distance_finding_has_a_place_between_its_ends(drawn, monkeypatch):
    ends = {"photographs": lambda: photographs()[::3], "noise": lambda: noise()[:2]}
    monkeypatch.setattr(domain_gap, "_ENDS", ends)
    found = domain_gap.find(inputs_of(drawn, sample_patches=20))
    place = found.numbers["place between photographs (0) and noise (1)"]
    assert 0.1 < place["low"] <= place["value"] <= place["high"] < 0.7 and found.severity == "fine"
    assert len(found.evidence["layers"]) == 49 and found.details[0].title == "By site"
