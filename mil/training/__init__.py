"""train-mil: from a cohort to a run directory. May import report and below."""
