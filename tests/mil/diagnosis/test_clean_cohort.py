"""A cohort without a fault raises no alarm; each finding's own faults are tested beside it in findings."""

from mil.diagnosis.findings import duplicates, helpful_patients, shortcut, signal, wrong_labels


def test_the_clean_cohort_raises_no_alarm(clean):
    found = [f(clean) for f in (duplicates.find, signal.find, shortcut.find, wrong_labels.find, helpful_patients.find)]
    assert [(f.key, f.severity) for f in found if f.severity != "fine"] == []
    doubled = found[1].numbers["expected AUROC with twice the patients"]
    assert found[1].numbers["AUROC of averaged features"]["value"] > 0.95 and doubled["high"] > 0.97
    assert found[2].numbers["site from features: AUROC"]["low"] > 0.6  # it is seen, and does no harm
