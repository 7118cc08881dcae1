"""Signal is found where it is planted, and not where labels say nothing, however many patches a slide has."""

import numpy as np
import pytest

from mil.diagnosis.findings import signal

BEST = "AUROC of the best of average, spread and extremes"
PATCHES = "patches of each slide behind spread and extremes"


@pytest.mark.parametrize("plan", [{"fault": "permuted"}, {"witness": 0.0, "larger": 4}])
def test_no_signal_is_found_where_labels_say_nothing_even_of_larger_slides(build, plan):
    found = signal.find(build(**plan))
    assert found.severity == "fault" and "No signal" in found.verdict
    assert found.numbers[BEST]["p"] > 0.05 and found.numbers[PATCHES]["value"] == 30


def test_signal_in_a_few_patches_is_found(build):
    found = signal.find(build(witness=0.02, patches=100, larger=2, spread=0.3))
    assert found.severity == "look" and "the spread or the extremes" in found.verdict
    assert found.numbers[BEST]["p"] < 0.05 <= found.numbers["AUROC of averaged features"]["p"]


def test_scraps_of_tissue_do_not_decide_how_many_patches_are_compared(build):
    cohort = build(witness=0.0, patches=100).cohort
    assert signal._as_many_of_each(cohort)[0] == 100
    sizes = [len(features) for features in cohort.features]
    cut = list(cohort.features)
    cut[3], cut[4] = cut[3][:2], cut[4][:12]
    object.__setattr__(cohort, "features", cut)
    patches, slides = signal._as_many_of_each(cohort)
    assert patches == 10 and set(np.arange(len(sizes))) - set(slides) == {3}


@pytest.mark.parametrize(
    ("low", "severity", "said"), [(0.90, "look", "The run finds signal"), (0.45, "fault", "No signal")]
)
def test_a_run_that_finds_signal_is_believed(low, severity, said):
    auroc = {"value": 0.56, "low": 0.37, "high": 0.74}
    found = signal._judge((0.12, 0.08), auroc, ({"value": 0.97, "low": low, "high": 1.0}, True), None, {})
    assert found[0] == severity and found[1].startswith(said) and f"AUROC 0.97, {low:.2f}–1.00" in found[1]
    assert "give its --run" not in found[2]


@pytest.mark.parametrize(("given", "advice"), [(False, "give its --run"), (True, "see in the run's report.html")])
def test_a_run_that_is_there_already_is_not_asked_for(given, advice):
    """One of another kind of target, which this finding cannot read."""
    auroc = {"value": 0.56, "low": 0.37, "high": 0.74}
    severity, _, remedy = signal._judge((0.12, 0.08), auroc, (None, given), None, {})
    assert severity == "fault" and advice in remedy and ("give its --run" in remedy) is not given
