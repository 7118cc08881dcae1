"""A site that goes with the label is found."""

from mil.diagnosis.findings import shortcut


def test_a_site_that_goes_with_the_label_is_found(build):
    found = shortcut.find(build("site"))
    assert found.severity == "fault" and "site" in found.verdict
    assert found.numbers["label from site: AUROC"]["value"] > 0.9
