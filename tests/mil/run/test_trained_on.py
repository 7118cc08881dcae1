"""Which models may judge a patient: none that learnt from the patient, and none that the patient stopped."""

from pathlib import Path

import pytest

from mil.run.tables import read_splits
from mil.run.trained_on import read_trained_on

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("run", ["run-v1", "run-v2", "run-v4"])
def test_validation_patients_are_seen_as_training_patients_are(run):
    trained_on, splits = read_trained_on(GOLDEN / run), read_splits(GOLDEN / run)
    assert {"train", "test"} == set(splits["split"]) - {"val"}
    for patient, own in splits.groupby("patient_id"):
        assert trained_on.unseen_by(patient) == sorted(set(own.loc[own["split"] == "test", "fold"])), patient
    assert trained_on.unseen_by("new") == [0, 1]
