"""Wrong labels are found and come first; right labels of atypical slides are not called wrong."""

from dataclasses import replace

import numpy as np
import pytest
from planted_cohorts import Plan

from mil.diagnosis import slide_pictures
from mil.diagnosis.findings import helpful_patients, wrong_labels

SLIDES = Plan().slides
SHARE = "share of slides that lie where the other class does, linear probe"


@pytest.fixture(scope="module")
def flipped(build):
    return build("flipped")


def test_wrong_labels_are_found_and_come_first(flipped):
    found = wrong_labels.find(flipped)
    assert found.severity == "look"
    wrong = Plan().flipped(flipped.cohort.labels)
    first = found.evidence["order"][: round(0.3 * SLIDES)]
    assert len(wrong) == SLIDES // 5 and len(wrong & set(first)) >= 0.7 * len(wrong)
    assert found.numbers[SHARE]["low"] <= 0.2 <= found.numbers[SHARE]["high"]
    harm = helpful_patients.find(flipped).evidence["harm"]
    worst = sorted(harm, key=harm.get)[::-1][: len(wrong)]
    assert len({slide.replace("s", "p") for slide in wrong} & set(worst)) >= 0.5 * len(wrong)


def test_slides_that_show_nothing_of_a_right_label_are_called_atypical_too_and_are_not_to_be_dropped(build):
    found = wrong_labels.find(build(silent=0.4))
    assert found.severity == "look" and "their labels are wrong, or the slides are atypical" in found.verdict
    assert "another class: 9 labelled tumour, 1 labelled normal" in found.verdict
    assert "Keep a slide that is only atypical" in found.remedy and "leave out" not in found.remedy


def test_where_classes_overlap_nothing_is_said_of_labels(build):
    found = wrong_labels.find(build(witness=0.1, spread=1.0))
    assert found.severity == "fine" and "too close together to tell" in found.verdict


def test_the_most_suspicious_slides_are_shown(flipped, monkeypatch, tmp_path):
    class Store:
        def __init__(self, path):
            self.thumbnail = np.zeros((40, 60, 3), np.uint8)

    monkeypatch.setattr(slide_pictures, "PatchStore", Store)
    found = wrong_labels.find(replace(flipped, sources=replace(flipped.sources, patches=tmp_path)))
    _, picture = found.pictures
    first = found.evidence["order"][0]
    assert picture.title == "Most suspicious slides" and picture.caption.startswith(
        f"From the left, row by row: {first} ("
    )
