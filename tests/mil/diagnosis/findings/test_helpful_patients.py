"""A patient is left out with all slides."""

import numpy as np

from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.findings import helpful_patients
from mil.diagnosis.inputs import Sources, load_inputs


def test_patients_are_ranked_and_named_with_all_their_slides(planted):
    inputs = load_inputs(Sources(planted.parent, planted, "diagnosis"), DiagnoseConfig(bootstrap=100))
    found = helpful_patients.find(inputs)
    harm = found.evidence["harm"]
    assert list(harm) == sorted(set(inputs.cohort.patient_ids)) and np.isfinite(list(harm.values())).all()
    worst, best = (details.rows[0] for details in found.details)
    assert worst[0] == max(harm, key=harm.get) and best[0] == min(harm, key=harm.get)
    number = 2 * int(worst[0][1:])
    assert worst[1] == f"s{number:02d}, s{number + 1:02d}"  # two slides a patient
