"""diagnose-cohort: why validation accuracy is stuck. May import training and below."""
