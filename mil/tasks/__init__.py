"""What a kind of target is. May import cohort, metrics and pages."""
