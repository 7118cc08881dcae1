"""The estimators behind the findings: arrays and cohorts in, numbers out. May import finding, and each other."""
