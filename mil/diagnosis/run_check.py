"""Whether a run directory was made from the very slides and labels that are diagnosed."""

from typing import Any

from mil.diagnosis.inputs import Inputs
from mil.run.layout import require_complete
from tiling.jobs.errors import RequestError


def require_same_cohort(inputs: Inputs) -> dict[str, Any]:
    """The run's provenance. RequestError where its features or labels are others; MissingInput without a run."""
    folder = inputs.require_run()
    provenance = require_complete(folder)
    for key, what in (("features_sha256", "features"), ("labels_sha256", "labels or patients")):
        if provenance.get(key) != getattr(inputs.cohort, key):
            raise RequestError(
                f"--run {folder.name}: it was trained on other {what} than those given; "
                "give the features and the label table of that run, or train again"
            )
    return provenance
