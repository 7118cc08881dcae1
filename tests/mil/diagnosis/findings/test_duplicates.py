"""One patient under two ids is found."""

from mil.diagnosis.findings import duplicates


def test_patients_under_other_ids_are_found(build):
    found = duplicates.find(build("twice"))
    assert found.severity == "fault" and found.numbers["of them under different patients"]["value"] == 2
